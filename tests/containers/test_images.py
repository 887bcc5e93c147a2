"""The images, built and run as on machines that trust nobody.

``CONTAINER_BUILD`` is the command that builds, ``docker build`` or ``podman build`` if it is unset;
``CONTAINER_IMAGE`` names an image that was built before. ``APPTAINER_BUILD`` is what builds for
Apptainer, ``apptainer build --fakeroot`` if it is unset.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slimbrain_app import __version__
from slimbrain_app.errors import Exit

pytestmark = pytest.mark.containers

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).with_name("slimbrain-tools")
# Any user, and nothing but the mounts and /tmp to write to.
HARDENED = (
    *("--user", "4321:4321", "--network", "none", "--read-only", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--tmpfs", "/tmp"),
)
SHUT_OFF = ("--containall", "--no-home", "--net", "--network", "none")
# Where an image of Apptainer's was made from.
SOURCES = ("image", "base")


def run(*words: object, timeout: int = 300, **options: Any):
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=timeout, **options
    )


@pytest.fixture(scope="session")
def engine() -> str:
    for name in ("docker", "podman"):
        if shutil.which(name) and run(name, "info").returncode == 0:
            return name
    pytest.skip("neither docker nor podman answers")


@pytest.fixture(scope="session")
def image(engine: str) -> str:
    if name := os.environ.get("CONTAINER_IMAGE"):
        return name
    name = "localhost/slimbrain:test"
    build = shlex.split(os.environ.get("CONTAINER_BUILD", f"{engine} build"))
    done = run(*build, "--tag", name, "--build-arg", "REVISION=tested", ROOT, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return name


@pytest.fixture(scope="session")
def make_sif(engine, tmp_path_factory):
    """Make Apptainer's image by Singularity.def from an image that the engine has."""
    folder = tmp_path_factory.mktemp("apptainer")

    def make(source: str, name: str) -> Path:
        if shutil.which("apptainer") is None:
            pytest.skip("Apptainer is not here")
        archive, file = folder / f"{name}.tar", folder / f"{name}.sif"
        kind = ("--format", "docker-archive") if engine == "podman" else ()
        done = run(engine, "save", *kind, "--output", archive, source, timeout=900)
        assert done.returncode == 0, done.stderr
        words = ("--build-arg", "bootstrap=docker-archive", "--build-arg", f"from={archive}")
        fast = ("--mksquashfs-args", "-Xcompression-level 1")
        environment = {**os.environ, "APPTAINER_TMPDIR": str(folder)}
        build = shlex.split(os.environ.get("APPTAINER_BUILD", "apptainer build --fakeroot"))
        command = (*build, *fast, *words, file, "Singularity.def")
        done = run(*command, cwd=ROOT, env=environment, timeout=3600)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        archive.unlink()
        return file

    return make


@pytest.fixture(scope="session")
def sifs(make_sif, image):
    """Make each of Apptainer's images when it is first asked for."""
    base = re.search(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    made: dict[str, Path] = {}

    def get(source: str) -> Path:
        if source not in made:
            made[source] = make_sif({"image": image, "base": base}[source], source)
        return made[source]

    return get


@pytest.fixture(scope="session")
def plain(simulated, tmp_path_factory) -> Path:
    """Outputs of the program that is installed beside these tests."""
    output = tmp_path_factory.mktemp("plain") / "out"
    done = run(TOOLS.with_name("slimbrain"), simulated, output, "participant")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def output(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def call(engine, image, simulated, output):
    """Run the image on the cohort, with options of the engine's besides."""

    def call(*words: object, options: tuple[object, ...] = (), data: Path | None = simulated):
        mounts = ["--volume", f"{output}:/out"]
        if data is not None:
            mounts += ["--volume", f"{data}:/data:ro"]
        return run(engine, "run", "--rm", *HARDENED, *mounts, *options, image, *words)

    return call


def read_outputs(folder: Path) -> dict[str, object]:
    """Tables and images, and their JSONs but for what tells of the machine and the moment."""
    read: dict[str, object] = {}
    for file in folder.glob("sub-*/**/*.*"):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".json":
            passing = ("Software", "Outputs", "Seconds")
            facts = json.loads(file.read_text())
            read[name] = {key: value for key, value in facts.items() if key not in passing}
        else:
            read[name] = file.read_bytes()
    assert read
    return read


def read_maker(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / "dataset_description.json").read_text())["GeneratedBy"][0]


def test_an_image_is_small_and_says_what_it_is(engine, image):
    facts = json.loads(run(engine, "image", "inspect", image).stdout)[0]
    assert facts["Size"] < 2.2e9
    labels = facts["Config"]["Labels"]
    told = {name.rpartition(".")[2]: value for name, value in labels.items() if "opencont" in name}
    assert told["version"] == __version__
    assert told["licenses"] == "Apache-2.0"
    assert {"title", "description", "revision", "authors"} <= told.keys()


def test_an_image_holds_no_tools_to_build_and_nothing_left_of_building(engine, image):
    script = """
        for name in gcc cc make pip pip3 git; do command -v $name; done
        python -c 'import pip' 2>/dev/null && echo pip
        find /src /root/.cache /tmp /var/tmp /var/cache/apt/*.bin /var/lib/apt/lists -mindepth 1 \
            2>/dev/null
        true
    """
    done = run(engine, "run", "--rm", "--entrypoint", "sh", image, "-c", script)
    assert (done.returncode, done.stdout) == (0, "")


def test_all_that_is_loaded_is_compiled(engine, image):
    script = """
import importlib.util, pathlib, sys
import nibabel, nipype, torch, slimbrain_app.cli.app
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
sources = [file for file in files if file.startswith("/") and file.endswith(".py")]
compiled = importlib.util.cache_from_source
print(len(sources), *[file for file in sources if not pathlib.Path(compiled(file)).exists()])
"""
    done = run(engine, "run", "--rm", "--entrypoint", "python", image, "-c", script)
    count, *lacking = done.stdout.split()
    assert int(count) > 500
    assert lacking == []


def test_weights_and_templates_are_whole_and_nothing_else_is_wanting(engine, image):
    words = ("run", "--rm", *HARDENED, "--entrypoint", "slimbrain-tools", image, "doctor")
    done = run(engine, *words)
    assert done.returncode == 0, done.stdout
    assert "fails" not in done.stdout


def test_any_user_gets_what_plain_python_writes_to_the_last_bit(call, output, plain):
    done = call("/data", "/out", "participant")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert read_outputs(output) == read_outputs(plain)
    assert {path.stat().st_uid for path in output.rglob("*")} == {4321}
    assert read_maker(output)["Container"] == {"Type": "docker", "Tag": f"slimbrain:{__version__}"}


@pytest.mark.parametrize("home", ["HOME=/nowhere", "HOME=/root", None])
def test_no_home_is_needed(call, output, home):
    words = ("/data", "/out", "participant", "--participant-label", "01")
    if home is None:
        done = call("-u", "HOME", "slimbrain", *words, options=("--entrypoint", "env"))
    else:
        done = call(*words, options=("--env", home))
    assert done.returncode == 0, done.stderr
    assert "atplotlib" not in done.stderr
    assert (output / "sub-01.html").is_file()


def test_nothing_is_left_in_the_temporary_folder(engine, image, simulated, output, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o777)
    mounts = (
        f"--volume={simulated}:/data:ro",
        f"--volume={output}:/out",
        f"--volume={folder}:/tmp",
    )
    shut = [word for word in HARDENED if word not in ("--tmpfs", "/tmp")]
    words = ("/data", "/out", "participant", "--nprocs", "2")
    done = run(engine, "run", "--rm", *shut, *mounts, image, *words)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []


def require_refusal(done: Any, code: Exit, *said: str) -> None:
    """Hold that one line says it, before any work; the last may say what is mounted."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    if lines[-1].startswith("slimbrain: mounted here"):
        lines.pop()
    assert all(text in lines[-1] for text in said), done.stderr
    assert len([line for line in lines if line.startswith("slimbrain: ")]) == 1
    assert not any(line.startswith("[1/") for line in lines)
    assert done.stdout == ""


def test_a_mount_that_is_forgotten_is_named(call, output):
    done = call("/data", "/out", "participant", data=None)
    require_refusal(done, Exit.NO_INPUT, "[no-input] /data", "mounted")
    assert list(output.iterdir()) == []


def test_a_mount_of_another_folder_is_named(call, output, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    done = call("/data", "/out", "participant", data=other)
    require_refusal(done, Exit.NO_INPUT, "/data")
    assert list(output.iterdir()) == []


def test_an_output_that_may_not_be_written_is_said_before_work(call, output):
    output.chmod(0o755)
    done = call("/data", "/out", "participant")
    require_refusal(done, Exit.CANNOT_WRITE, "[not-writable] /out")
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--device", "cuda"), Exit.UNAVAILABLE, ("[device-missing]", "--gpus all")),
        (("--model", "elsewhere"), Exit.CONFIGURATION, ("[package-missing]", "elsewhere")),
        (("--work-dir", "/data/work"), Exit.USAGE, ("[work-in-input]",)),
    ],
)
def test_what_can_not_be_done_is_said_before_work(call, output, words, code, said):
    done = call("/data", "/out", "participant", *words)
    require_refusal(done, code, *said)
    assert list(output.iterdir()) == []


def test_a_command_works_as_it_is_printed(engine, image, simulated, tmp_path, plain):
    output = tmp_path / "my results"
    words = ("container", "--engine", engine, "--image", image, "--")
    printed = run(TOOLS, *words, simulated, output, "participant")
    assert printed.returncode == 0, printed.stderr
    done = run("bash", "-c", printed.stdout)
    assert done.returncode == 0, done.stderr
    assert read_outputs(output) == read_outputs(plain)
    assert {path.stat().st_uid for path in output.rglob("*")} == {os.getuid()}


def test_building_stops_at_a_torch_that_was_not_asked_for(tmp_path):
    """Stand-ins for Python say that torch knows no CUDA."""
    shutil.copytree(ROOT / "containers", tmp_path / "src" / "containers")
    shutil.copy(ROOT / "requirements.lock", tmp_path / "src")
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nexit 0\n")
    stand_in.chmod(0o755)
    script = (tmp_path / "src/containers/install.sh").read_text()
    script = script.replace("/opt/slimbrain/bin", str(tmp_path))
    (tmp_path / "src/containers/install.sh").write_text(script)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run("sh", tmp_path / "src/containers/install.sh", "cuda", env=environment)
    assert done.returncode == 1
    assert "expected torch with CUDA, found it without" in done.stderr


@pytest.mark.parametrize("source", SOURCES)
def test_apptainer_gives_what_plain_python_writes_to_the_last_bit(
    sifs, simulated, output, plain, source
):
    sif = sifs(source)
    binds = ("--bind", f"{simulated}:/data:ro", "--bind", f"{output}:/out")
    words = ("/data", "/out", "participant")
    done = run("apptainer", "run", *SHUT_OFF, *binds, sif, *words)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert read_outputs(output) == read_outputs(plain)
    tag = f"slimbrain:{__version__}"
    assert read_maker(output)["Container"] == {"Type": "singularity", "Tag": tag}


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_of_apptainers_tests_and_explains_itself(sifs, source):
    sif = sifs(source)
    assert run("apptainer", "test", *SHUT_OFF, sif).returncode == 0
    assert "apptainer run" in run("apptainer", "run-help", sif).stdout
    labels = json.loads(run("apptainer", "inspect", "--json", "--labels", sif).stdout)
    told = labels["data"]["attributes"]["labels"]
    assert told["org.opencontainers.image.version"] == __version__
    done = run("apptainer", "run", *SHUT_OFF, sif, "--version")
    assert done.stdout.startswith(f"slimbrain {__version__} ")


def test_modules_of_the_host_stay_out(sifs, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('the torch of the host')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = "import torch; print(torch.__file__)"
    words = ("--bind", tmp_path, sifs("image"), "python", "-c", script)
    done = run("apptainer", "exec", *words, env=environment)
    assert done.stdout.startswith("/opt/slimbrain"), done.stderr


def test_a_command_for_apptainer_works_as_it_is_printed(sifs, simulated, tmp_path, plain):
    output = tmp_path / "my results"
    words = ("container", "--engine", "apptainer", "--image", sifs("image"), "--")
    printed = run(TOOLS, *words, simulated, output, "participant")
    assert printed.returncode == 0, printed.stderr
    done = run("bash", "-c", printed.stdout)
    assert done.returncode == 0, done.stderr
    assert read_outputs(output) == read_outputs(plain)
