"""Calls that enter an image, as they are shown; `tests/containers` has them carried out."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from slimbrain_app.cli import container, tools
from slimbrain_app.cli.arguments import WRITTEN
from slimbrain_app.cli.parser import make_parser

TOOLS = Path(sys.executable).with_name("slimbrain-tools")
IMAGE = "slimbrain:1"
DOCKER = ["container", "--engine", "docker", "--image", IMAGE, "--"]
CALL = ["fmriprep", "out", "participant"]
# Each option with a path on its level, and its call's other words.
EVALUATE = ("group", "--action=evaluate", "--outcome=age")
LEVELS = {"dataset": EVALUATE, "phenotype": EVALUATE}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder that one stands in, with derivatives, and no caches elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fmriprep/sub-01").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TEMPLATEFLOW_HOME", *container.PASSED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(container, "NVIDIA", tmp_path / "no card")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return tmp_path.resolve()


@pytest.fixture
def show(capsys):
    """Return what a call prints, as words, but for the folders that are made before."""

    def call(*words: str, start: list[str] = DOCKER) -> list[str]:
        assert tools.main([*start, *words]) == 0
        shown = capsys.readouterr().out
        return shlex.split(shown.replace("\\\n", "").rpartition("&&\n")[2])

    return call


def list_mounts(words: list[str]) -> dict[str, bool]:
    """Return what is mounted under its own path, and whether it can be written."""
    mounts = {}
    for word in words:
        if word.startswith("--mount="):
            (_, source, destination, *options), *_ = csv.reader([word.removeprefix("--mount=")])
            assert source.partition("=")[2] == destination.partition("=")[2]
            mounts[source.partition("=")[2]] = options != ["ro"]
    return mounts


def list_variables(words: list[str]) -> dict[str, str]:
    settings = (word.removeprefix("--env=") for word in words if word.startswith("--env="))
    return dict(setting.split("=", 1) for setting in settings)


def list_arguments(words: list[str]) -> list[str]:
    return words[words.index(IMAGE) + 1 :]


def test_folders_are_whole_paths_inside_and_out(here, show):
    words = show(f"../{here.name}/fmriprep", "./new/out", "participant")
    data, out, scratch = (f"{here}/{name}" for name in ("fmriprep", "new/out", "scratch"))
    assert list_arguments(words) == [data, out, "participant"]
    assert list_mounts(words) == {data: False, out: True, scratch: True}
    assert list_variables(words) == {"TMPDIR": scratch}
    assert not (here / "new").exists()


def test_what_is_temporary_goes_into_the_work_folder(here, show):
    words = show(*CALL, "-w", "work")
    assert list_variables(words)["TMPDIR"] == f"{here}/work"
    assert list_mounts(words)[f"{here}/work"] is True
    assert f"{here}/scratch" not in list_mounts(words)


def test_inputs_in_the_temporary_folder_stay_unharmed(here, show, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    assert list_mounts(show(*CALL)) == {str(here): True, f"{here}/fmriprep": False}


def test_every_option_that_takes_a_path_has_it_mounted(here, show):
    options = [action for action in make_parser()._actions if action.type is Path]
    assert len(options) > 5
    (here / "it").mkdir()
    for action in options:
        value = "it"
        if action.dest == "config":
            value = "it.toml"
            (here / value).touch()
        option = [f"{action.option_strings[-1]}={value}"] if action.option_strings else []
        call = ["fmriprep", "out", *LEVELS.get(action.dest, ("participant",)), *option]
        if not option:
            call[action.dest == "output_dir"] = value
            (here / "it/sub-01").mkdir(exist_ok=True)
        words = show(*call)
        written = action.dest in WRITTEN
        assert list_mounts(words)[str(here / value)] == written, action.dest
        named = [word.rpartition("=")[2] for word in list_arguments(words)]
        assert str(here / value) in named, action.dest


def test_a_model_is_a_folder_with_a_slash_or_a_name(here, show):
    (here / "tiny").mkdir()
    words = show(*CALL, "--model", "./tiny")
    assert f"--model={here}/tiny" in words
    assert list_mounts(words)[f"{here}/tiny"] is False
    words = show(*CALL, "--model", "tiny")
    assert "--model=tiny" in words
    assert f"{here}/tiny" not in list_mounts(words)


def test_a_link_is_followed_before_the_image_is_entered(here, show):
    (here / "way").symlink_to(here)
    words = show("way/fmriprep", "way/out", "participant")
    assert list_arguments(words)[:2] == [f"{here}/fmriprep", f"{here}/out"]
    assert f"{here}/fmriprep" in list_mounts(words)


def test_other_words_stay_as_they_are(show):
    words = [*CALL, "--participant_label", "01", "sub-a", "--mem", "8GB", "--mem-gb=8", "-vv"]
    assert list_arguments(show(*words))[3:] == [
        *("--participant-label", "01", "sub-a"),
        *("--mem=8GB", "--mem-gb=8", "--verbose", "--verbose"),
    ]


def test_files_that_settings_name_are_mounted(here, show):
    split, atlas = here / "split.tsv", here / "more/atlas.nii.gz"
    for file in (split, atlas):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    lines = (f'judge.split = "{split}"', f'baseline.atlas = "{atlas}"', 'model = "tiny"')
    (here / "x.toml").write_text("\n".join(lines))
    words = show("fmriprep", "out", *EVALUATE, "--config", "x.toml")
    assert {str(split), str(atlas)} <= set(list_mounts(words))


@pytest.mark.parametrize("name", ["split.tsv", "more/split.tsv"])
def test_a_file_that_settings_name_from_here_is_refused(here, capsys, name):
    (here / "more").mkdir()
    (here / name).touch()
    (here / "x.toml").write_text(f'judge.split = "{name}"')
    assert tools.main([*DOCKER, "fmriprep", "out", *EVALUATE, "--config=x.toml"]) == 78
    assert f"write {here}/{name}" in capsys.readouterr().err


def test_datasets_that_the_input_links_to_are_mounted(here, show):
    (here / "raw").mkdir()
    links = {"raw": "../raw", "gone": "../gone", "all": "/"}
    description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetLinks": links}
    (here / "fmriprep/dataset_description.json").write_text(json.dumps(description))
    mounts = list_mounts(show(*CALL))
    assert mounts[f"{here}/raw"] is False
    assert "/" not in mounts
    assert f"{here}/gone" not in mounts


def test_templates_and_fetched_packages_are_found_inside(here, show, monkeypatch):
    assert not {"TEMPLATEFLOW_HOME", "XDG_CACHE_HOME"} & list_variables(show(*CALL)).keys()
    (here / "cache/slimbrain/models").mkdir(parents=True)
    (here / "templates").mkdir()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", "templates")
    words = show(*CALL)
    variables = list_variables(words)
    assert variables["TEMPLATEFLOW_HOME"] == f"{here}/templates"
    assert variables["XDG_CACHE_HOME"] == f"{here}/cache"
    mounts = list_mounts(words)
    assert mounts[f"{here}/templates"] is mounts[f"{here}/cache/slimbrain/models"] is False


def test_limits_of_a_job_hold_inside(show, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "8000")
    assert list_variables(show(*CALL))["SLURM_MEM_PER_NODE"] == "8000"


@pytest.mark.parametrize(
    ("words", "card", "passed"),
    [
        ((), True, True),
        ((), False, False),
        (("--device=cpu",), True, False),
        (("--device=cuda:1",), False, True),
        (("--config=cpu.toml",), True, False),
        (("--config=cpu.toml", "--device=auto"), True, True),
    ],
)
def test_a_gpu_is_passed_on_if_it_is_asked_for_or_there(here, show, words, card, passed):
    if card:
        container.NVIDIA.touch()
    (here / "cpu.toml").write_text('compute.device = "cpu"')
    assert ("--gpus=all" in show(*CALL, *words)) == passed


def test_tables_take_no_gpu(show):
    container.NVIDIA.touch()
    assert "--gpus=all" not in show("fmriprep", "out", "group")


def test_a_dry_run_makes_no_folder_nor_mounts_one(here, show, capsys):
    words = show(*CALL, "--dry-run", "--work-dir=w")
    assert not {f"{here}/out", f"{here}/w"} & list_mounts(words).keys()
    assert tools.main([*DOCKER, *CALL, "--dry-run"]) == 0
    assert "mkdir" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["missing", "out", "participant"], 66),
        (["fmriprep", "fmriprep", "participant"], 64),
        (["fmriprep", "fmriprep/sub-01", "participant"], 64),
        ([*CALL, "--work-dir=fmriprep/work"], 64),
        ([*CALL, "--bids-filter-file=missing.json"], 64),
        ([*CALL, "--config=missing.toml"], 78),
        ([*CALL, "--windos=3"], 64),
        ([*CALL, "--config"], 64),
        (["fmriprep", "foreign", "participant"], 64),
        (["fmriprep", "file/out", "participant"], 73),
        (["fmriprep", "a\nb", "participant"], 64),
        (["/usr", "out", "participant"], 64),
        ([], 64),
    ],
)
def test_what_would_be_refused_inside_is_refused_before(here, capsys, words, code):
    (here / "foreign").mkdir()
    (here / "foreign/dataset_description.json").write_text('{"Name": "other"}')
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    assert tools.main([*DOCKER, *words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_an_image_that_is_a_file_must_be_there(here, show, capsys):
    start = ["container", "--engine", "apptainer", "--image", "my.sif", "--"]
    assert tools.main([*start, *CALL]) == 64
    assert "my.sif" in capsys.readouterr().err
    (here / "my.sif").touch()
    assert f"{here}/my.sif" in show(*CALL, start=start)
    start[4] = "docker://slimbrain:1"
    assert "docker://slimbrain:1" in show(*CALL, start=start)


def test_an_engine_that_is_not_installed_is_refused_before_folders_are_made(
    here, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(here))
    assert tools.main([*DOCKER[:-1], "--run", "--", *CALL]) == 69
    assert "[extra-missing] docker" in capsys.readouterr().err
    assert not (here / "out").exists()


@pytest.fixture
def engine(here):
    """A stand-in for docker that tells its words and its end; the environment that has it."""
    program = here / "bin/docker"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\ntrap 'echo stopped; exit 75' TERM\n"
        'printf "%s\\0" "$@" > words.txt\nls -d out\n'
        "[[ ! -e wait ]] || { echo ready; while true; do sleep 0.05; done; }\nexit 65\n"
    )
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{here}/bin{os.pathsep}{os.environ['PATH']}"}


def run(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def test_what_is_shown_can_be_pasted_and_what_is_run_is_what_is_shown(here, engine):
    hostile = 'o\'u "$(touch harm)" \\; #`touch harm`'
    call = ["fmriprep", hostile, *CALL[2:]]
    shown, _ = run([TOOLS, *DOCKER, *call], engine).communicate(timeout=60)
    subprocess.run(["bash", "-c", shown], env=engine, stdout=subprocess.DEVNULL)
    assert (here / hostile).is_dir()
    assert not (here / "harm").exists()
    pasted = (here / "words.txt").read_bytes()
    (here / "words.txt").unlink()
    run([TOOLS, *DOCKER[:-1], "--run", "--", *call], engine).communicate(timeout=60)
    assert (here / "words.txt").read_bytes() == pasted
    assert f"{here}/{hostile}".encode() in pasted.split(b"\0")


def test_the_exit_code_is_that_of_the_image_and_its_output_is_there_before(engine):
    started = run([TOOLS, *DOCKER[:-1], "--run", "--", *CALL], engine)
    out, _ = started.communicate(timeout=60)
    assert (started.returncode, out) == (65, "out\n")


def test_signals_reach_the_engine(here, engine):
    (here / "wait").touch()
    with run([TOOLS, *DOCKER[:-1], "--run", "--", *CALL], engine) as started:
        assert [started.stdout.readline() for _ in range(2)] == ["out\n", "ready\n"]
        started.terminate()
        assert started.stdout.readline() == "stopped\n"
    assert started.returncode == 75
