from __future__ import annotations

import shlex
import subprocess

import pytest

from slimbrain_app.cli.tools import main

CALL = ["slurm", "pretrain", "derivatives", "out", "--nodes=2", "--gpus-per-node=4"]
TIMED = [*CALL, "--time=04:00:00"]


def read_command(script: str) -> list[str]:
    return shlex.split(script.partition("command=(")[2].partition("\n)\n")[0])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_calls_slimbrain_with_whole_paths_and_the_options_after_the_dashes(here, capsys):
    (here / "my.toml").touch()
    assert main([*TIMED, "--config=my.toml", "--", "--preset", "base", "--seed", "3"]) == 0
    command = read_command(capsys.readouterr().out)
    assert command[:3] == ["slimbrain", f"{here}/derivatives", f"{here}/out"]
    assert command[3:] == [
        "group",
        "--action=pretrain",
        f"--config={here}/my.toml",
        *("--preset=base", "--seed=3"),
    ]


def test_paths_in_options_are_whole_too_without_following_links(here, capsys):
    (here / "my.toml").touch()
    (here / "link").symlink_to("/somewhere")
    words = ["--dataset", "link", "../more", "--config", "my.toml", "-w", "w", "-vq"]
    assert main([*TIMED, "--", *words]) == 0
    script = capsys.readouterr().out
    assert read_command(script)[5:] == [
        *("--dataset", f"{here}/link", f"{here}/../more"),
        f"--config={here}/my.toml",
        f"--work-dir={here}/w",
        *("--verbose", "--quiet"),
    ]
    assert f"folders=(\n    {here}/out\n    {here}/w\n)" in script


def test_a_script_is_sound_bash_whatever_the_names(here, capsys):
    hostile = 'a\'b "$(touch harm)" \\; #`touch harm`'
    words = ["slurm", "pretrain", hostile, "out", "--time=60", "--", "--dataset", hostile]
    assert main([*words, "--package-name", "x"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"{here}/{hostile}" in read_command(script)


def test_a_script_goes_into_a_file_if_there_is_one_to_go_to(here, capsys):
    main(TIMED)
    script = capsys.readouterr().out
    assert main([*TIMED, "--output=job.sh"]) == 0
    assert capsys.readouterr().out == ""
    assert (here / "job.sh").read_text() == script


def test_an_image_sees_where_all_that_the_options_name_really_is(here, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(here / "templates"))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    for name in ("real", "more", "templates"):
        (here / name).mkdir()
    (here / "derivatives").symlink_to("real")
    (here / "my.toml").write_text(f"template = '{here}/templates/atlas'")
    (here / "templates/atlas").touch()
    options = ["--config=my.toml", "--dataset", "more", "other", "--work-dir=w"]
    assert main([*TIMED, "--image=s.sif", "--", *options]) == 0
    command = read_command(capsys.readouterr().out)
    mounts = [word for word in command if word.startswith("--mount")]
    read = ("real", "more", "other", "templates", "my.toml")
    told = {f"--mount=type=bind,source={here}/{it},destination={here}/{it},ro" for it in read}
    told |= {f"--mount=type=bind,source={here}/{it},destination={here}/{it}" for it in ("out", "w")}
    assert set(mounts) == told
    assert not {"--containall", "--network=none"} & set(command)
    start = command.index(f"{here}/s.sif")
    assert command[start + 1 : start + 4] == ["slimbrain", f"{here}/real", f"{here}/out"]
    # What holds on the machine that submits does not hold in the job.
    variables = [word for word in command if word.startswith("--env")]
    assert variables == [f"--env=TEMPLATEFLOW_HOME={here}/templates"]


@pytest.mark.parametrize(
    "time", ["60", "60:00", "4:00:00", "04:00:00", "2-0", "2-12:00", "1-00:00:00"]
)
def test_all_of_slurms_spellings_of_a_time_are_taken(time, capsys):
    assert main([*CALL, f"--time={time}"]) == 0
    assert f"--time={time}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [*CALL, "--time=4h"],
        CALL,
        [*TIMED, "--nodes=0"],
        [*TIMED, "--gpus-per-node=-1"],
        [*TIMED, "--partition=a b"],
        [*TIMED, "--account=x\n#SBATCH --uid=0"],
        [*TIMED, "--preset=base"],
        [*TIMED, "--", "--presett=base"],
        [*TIMED, "--", "--model=tiny"],
        [*TIMED, "--", "--bids-filter-file=none.json"],
    ],
)
def test_what_slurm_or_slimbrain_would_not_understand_is_refused_at_once(words, capsys):
    assert main(words) == 64
    assert capsys.readouterr().out == ""
