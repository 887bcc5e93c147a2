"""The configuration for BABS on its page: taken apart as BABS does, and understood by us."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from slimbrain_app import __version__
from slimbrain_app.cli.app import read_options
from slimbrain_app.cli.parser import make_parser

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-with-babs.md"
TEXT = PAGE.read_text(encoding="utf-8")
DASHED = __version__.replace(".", "-")


@pytest.fixture(scope="module")
def configuration():
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(block)


def make_call(arguments, subject="sub-01"):
    """Return the words that BABS puts into a job: a flag may stand without a value."""
    words = ["/job/inputs/data/fmriprep", "/job/outputs/slimbrain", "participant"]
    for key, value in arguments.items():
        assert value is None or isinstance(value, str), "BABS takes text only"
        if not key.startswith("$"):
            words += [key, value.replace("$BABS_TMPDIR", "/job/.git/tmp/wkdir")]
    return [*words, arguments["$SUBJECT_SELECTION_FLAG"], subject]


def test_call_of_a_job_is_understood(configuration):
    options = read_options(make_call(configuration["bids_app_args"]))
    assert options.participant_label == ["01"]
    assert options.work_dir == Path("/job/.git/tmp/wkdir")


def test_what_is_asked_of_slurm_is_what_the_call_uses(configuration):
    arguments, asked = configuration["bids_app_args"], configuration["cluster_resources"]
    assert arguments["--nprocs"] == asked["number_of_cpus"]
    assert arguments["--mem"] == f"{asked['hard_memory_limit']}B"


def test_options_that_the_prose_names_are_ours():
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w#-])--[a-z-]+", prose))
    others = {"--bind", "--containall", "--gres", "--no-container", "--nv", "--processing-level"}
    known = {option for action in make_parser()._actions for option in action.option_strings}
    assert {"--device", "--model", "--session-id", "--task-id"} <= named - others <= known


def test_names_carry_the_version(configuration):
    assert configuration["zip_foldernames"] == {"slimbrain": DASHED}
    assert f"containers-add --url /data/slimbrain.sif slimbrain-{DASHED}" in TEXT


def test_keys_are_those_that_babs_knows(configuration):
    assert set(configuration) == {
        "input_datasets",
        "bids_app_args",
        "singularity_args",
        "all_results_in_one_zip",
        "zip_foldernames",
        "cluster_resources",
        "script_preamble",
        "job_compute_space",
    }
