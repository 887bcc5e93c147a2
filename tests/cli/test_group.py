"""The group level's command line, and a package from derivatives to embeddings."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.cli.app import anonymise, main, read_options
from slimbrain_app.cli.parser import make_settings, name_verb
from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.settings import PretrainSettings, TabulateSettings

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
SETTINGS = """
[extract]
passes = 1
[train]
passes = 1
batch = 2
windows_per_run = 1
[pace]
workers = 0
"""


def slimbrain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [SLIMBRAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("level", "option"),
    [
        ("participant", "--action pretrain"),
        ("participant", "--dataset more"),
        ("participant", "--preset base"),
        ("participant", "--package-name mine"),
        ("group", "--model tiny"),
        ("group", "--views 2"),
        ("group", "--save-views"),
        ("group", "--save-prepared"),
        ("group", "--overwrite always"),
        ("tabulate", "--dataset more"),
        ("tabulate", "--windows 4"),
        ("tabulate", "--outcome age"),
    ],
)
def test_option_without_a_meaning_on_the_level_is_refused_by_name(level, option):
    calls = {
        "participant": (["participant"], "the participant level"),
        "group": (["group", "--action", "pretrain"], "--action pretrain"),
        "tabulate": (["group"], "--action tabulate"),
    }
    words, place = calls[level]
    with pytest.raises(CallRefused, match=f"{option.split()[0]} with {place}"):
        read_options(["in", "out", *words, *option.split()])


def test_group_level_collects_tables_unless_told_otherwise():
    words = "in out group --model mine --task-id task-rest --participant-label sub-01"
    options = read_options(words.split())
    assert name_verb(options) == "tabulate"
    assert name_verb(read_options([*words.split(), "--action", "tabulate"])) == "tabulate"
    settings, _ = make_settings(TabulateSettings, options)
    assert (settings.model, settings.select.tasks) == ("mine", ("rest",))
    assert settings.select.participants == ("01",)


def test_options_become_settings_of_the_group():
    words = "in out group --action pretrain --preset base --package-name mine --windows 3 --seed 5"
    settings, _ = make_settings(PretrainSettings, read_options(words.split()))
    assert (settings.preset, settings.package_name) == ("base", "mine")
    assert (settings.rank.windows, settings.seed) == (3, 5)


def test_datasets_are_gathered_from_repeated_options():
    words = "in out group --action pretrain --dataset b --dataset c".split()
    assert read_options(words).dataset == [Path("b"), Path("c")]


def test_command_line_that_is_kept_names_no_folder_of_this_machine():
    words = ["/data/in", "out", "--config=/home/me/x.toml", "--dataset", "/data/more", "--tr=2"]
    shown = ["slimbrain", "in", "out", "--config=x.toml", "--dataset", "more", "--tr=2"]
    assert anonymise(words) == shown


@pytest.fixture(scope="module")
def pretrained(simulated, tmp_path_factory):
    """Derivatives of two people, trained on; the output folder and the call's end."""
    folder = tmp_path_factory.mktemp("group")
    config = folder / "small.toml"
    config.write_text(SETTINGS)
    arguments = ("group", "--action", "pretrain", "--config", config, "--nprocs", 1)
    return folder / "out", slimbrain(simulated, folder / "out", *arguments)


def test_package_of_a_training_serves_the_participant_level(pretrained, simulated):
    output, result = pretrained
    assert result.returncode == Exit.DONE, result.stderr
    assert "2 to prepare" in result.stderr
    options = ("--participant-label", "01", "--nprocs", 1)
    embedded = slimbrain(simulated, output, "participant", *options)
    assert embedded.returncode == Exit.DONE, embedded.stderr
    assert "UNTRAINED" not in embedded.stderr
    (sidecar,) = output.glob("sub-01/func/*_embeddings.json")
    assert json.loads(sidecar.read_text())["Model"]["Trained"] is True


def test_prepared_runs_serve_the_next_training(pretrained, simulated):
    output, _ = pretrained
    settings = min(output.glob("logs/*/slimbrain.toml"))  # The first call's.
    options = ("--config", settings, "--package-name", "other", "--dry-run")
    result = slimbrain(simulated, output, "group", "--action", "pretrain", *options)
    assert result.returncode == Exit.DONE, result.stderr
    assert result.stdout.count("would use") == 2
    assert not (output / "models/other").exists()


def test_output_of_a_training_is_a_valid_bids_derivative(pretrained):
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("no bids-validator-deno in this environment")
    config = Path(__file__).parents[2] / "bids_validator_config.json"
    command = [validator, "--json", "--config", str(config), str(pretrained[0])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] != "ignore"] == []


@pytest.fixture
def handlers():
    """Put the handlers of signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--task-id", "movie"], Exit.NO_INPUT, ["movie", "rest"]),
        (["--participant-label", "9"], Exit.NO_INPUT, ["no-participant", "9"]),
        (["--dataset", "{data}"], Exit.USAGE, ["more than once"]),
        (["--dataset", "{data}/gone"], Exit.NO_INPUT, ["gone"]),
        (["--device", "cuda:9"], Exit.UNAVAILABLE, ["device-missing"]),
        (["--package-name", "a/b"], Exit.USAGE, ["package_name"]),
        (["-w", "{data}/work"], Exit.USAGE, ["work-in-input"]),
    ],
)
def test_a_call_that_cannot_start_says_why(simulated, tmp_path, capfd, options, code, words):
    filled = [option.format(data=simulated) for option in options]
    output = tmp_path / "out"
    call = [str(simulated), str(output), "group", "--action", "pretrain", *filled, "--dry-run"]
    assert main(call) == code
    errors = capfd.readouterr().err
    assert all(word in errors for word in words), errors
    assert "Traceback" not in errors
    assert not output.exists()
