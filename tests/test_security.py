"""What is promised on security, as far as the code itself can be asked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import slimbrain_app
from slimbrain_app.workflow.corpus import name_datasets

HOUSE = Path(slimbrain_app.__file__).parent
# What workers of one call hand to one another in memory.
MAY_PICKLE = {"training/loader.py"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "pty"}


def list_nodes(kind: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    return [
        (file.relative_to(HOUSE).as_posix(), node)
        for file in sorted(HOUSE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, kind)
    ]


CALLS = list_nodes(ast.Call)


def keywords_of(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


def test_nothing_is_imported_that_reads_code_from_data():
    imported = [
        (place, name.split(".")[0])
        for place, node in list_nodes(ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    ]
    assert [one for one in imported if one[1] in FORBIDDEN_MODULES] == []
    assert {place for place, module in imported if module == "pickle"} <= MAY_PICKLE


def test_no_text_is_run():
    assert [place for place, call in CALLS if ast.unparse(call.func) in FORBIDDEN_CALLS] == []
    assert [place for place, call in CALLS if "shell" in keywords_of(call)] == []


def test_readers_of_arrays_and_tensors_refuse_pickles():
    loads = [call for _, call in CALLS if ast.unparse(call.func) == "torch.load"]
    assert loads and all(keywords_of(call)["weights_only"] == "True" for call in loads)
    reads = [keywords_of(call).get("allow_pickle", "False") for _, call in CALLS]
    assert set(reads) == {"False"}


@pytest.mark.parametrize(
    "folders",
    [
        ("/data", "/x/data"),
        ("/data", "/x/data", "/x_data"),
        ("/a/data", "/b/data", "/b/a/data", "/data"),
        ("/", "/data"),
    ],
)
def test_names_of_datasets_differ_and_are_no_paths(folders):
    names = [dataset.name for dataset in name_datasets([Path(folder) for folder in folders])]
    assert len(set(names)) == len(folders)
    assert not any("/" in name for name in names)
