"""The page for troubles and the program: each message is provoked, and printed as it stands there.

A scenario breaks a copy of a simulated person's derivatives, or the call on them, and returns what
is printed then. It goes by the reason code of its message; by the first words where there is none.
The second message of a code on the page has a 2 after it.
"""

from __future__ import annotations

import errno
import gzip
import html
import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from slimbrain_app import device, embedding, files, prepare
from slimbrain_app.cli.app import main
from slimbrain_app.cli.terminal import Terminal
from slimbrain_app.errors import REASONS, CallRefused, Scope
from slimbrain_app.model import packages
from slimbrain_app.model.packages import (
    create_package,
    installed_packages,
    load_encoder,
    load_package,
    load_readout,
    save_package,
)
from slimbrain_app.records import Contract
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training.checkpoint import read_content, write_content
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.manifest import Manifest, write_manifest
from slimbrain_app.workflow import participant, plan
from slimbrain_app.workflow.corpus import plan_corpus

PAGE = "docs/troubleshooting.md"
RUN = "sub-01_task-rest_run-01"
MODEL = "space-MNI152NLin2009cAsym"
# What differs from one machine, call or release of the model to the next, and its stand-in. So does
# the temporary folder in which all happens: the page calls it /data.
VARYING = {
    r"\d{8}-\d{6}_[0-9a-f]{8}": "CALL",
    r"\b[0-9a-f]{64}\b": "CHECKSUM",
    r"\([0-9a-f]{12}\b": "(CHECKSUM",
    r"owner \d+:\d+": "owner OWNER",
    r"torch \S+ for (CPUs|CUDA [\d.]+)": "TORCH",
}
# Reasons that the page leaves to the reference, and where they are met.
ELSEWHERE = {
    "collapsed": "in a training",
    "diverged": "in a training",
    "log-bad": "in a training whose log was changed",
    "extra-missing": "in a training that is to write for tensorboard",
    "loader-died": "in a training; a process has to be killed",
    "rendezvous": "in a training of several processes",
    "process-failed": "in a training of several processes",
    "process-killed": "in slimbrain-tools simulate",
    "cohort-bad": "in slimbrain-tools simulate",
    "jobs-bad": "in slimbrain-tools slurm",
    "slurm-missing": "in slimbrain-tools slurm",
    "atlas-bad": "in an evaluation with an atlas of one's own",
    "template-missing": "in slimbrain-tools export brainmarks",
}
EMBED = ("participant", "--nprocs", "1", "--device", "cpu", "--windows", "1")


@dataclass(frozen=True)
class Place:
    """A person's derivatives that may be broken, and an output folder that isn't there yet."""

    folder: Path
    simulated: Path
    finished: Path
    screen: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    @property
    def dataset(self) -> Path:
        return self.folder / "fmriprep"

    @property
    def output(self) -> Path:
        return self.folder / "slimbrain"

    @cached_property
    def embedded(self) -> Path:
        """The output folder, with what a call on two people has written, prepared runs as well."""
        return Path(shutil.copytree(self.finished, self.output))

    def find(self, ending: str) -> Path:
        """Return the run's file with an ending: ``_bold.json``, for instance."""
        return self.dataset / f"sub-01/func/{RUN}_{ending}"

    @property
    def bold(self) -> Path:
        return self.find(f"{MODEL}_desc-preproc_bold.nii.gz")

    @property
    def sidecar(self) -> Path:
        return self.find(f"{MODEL}_desc-preproc_bold.json")

    @property
    def mask(self) -> Path:
        return self.find(f"{MODEL}_desc-brain_mask.nii.gz")

    @property
    def confounds(self) -> Path:
        return self.find("desc-confounds_timeseries.tsv")

    def print(self, *words: object) -> str:
        """Return what a call prints."""
        return self.print_plainly(self.dataset, self.output, *words)

    def print_of_all(self, *words: object) -> str:
        """Return what a call on two people says whose runs were embedded before."""
        return self.print_plainly(self.simulated, self.embedded, *words)

    def print_plainly(self, *words: object) -> str:
        self.screen.readouterr()
        main([str(word) for word in words])
        printed = self.screen.readouterr()
        return f"{printed.err}{printed.out}"

    def embed(self, *options: object) -> str:
        return self.print(*EMBED, *options)

    def report(self, *options: object) -> str:
        """Return the warnings in the report after a call, one a line, as a reader sees them."""
        self.embed(*options)
        page = (self.output / "sub-01.html").read_text(encoding="utf-8")
        lines = re.findall(r"<li><code>(.*?)</li>", page)
        return "\n".join(html.unescape(line.replace("</code>", "")) for line in lines)

    def write(self, name: str, text: str = "") -> Path:
        """Write a text unless it is there, and return its path."""
        path = self.folder / name
        if not path.exists():
            path.write_text(text, encoding="utf-8")
        return path

    def rename(self, before: str, after: str) -> None:
        """Change a part of the name of each file of the run that has it."""
        for path in self.dataset.glob(f"sub-01/func/*{before}*"):
            path.rename(path.with_name(path.name.replace(before, after)))


def change_image(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write other values, as float32."""
    image = nibabel.load(path)
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    values = change(np.asarray(image.dataobj, np.float32))
    nibabel.Nifti1Image(values, image.affine, header).to_filename(path)


def change_header(path: Path, **fields: object) -> None:
    """Set fields of a header, whatever they say together."""
    content = gzip.decompress(path.read_bytes())
    header = nibabel.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:], 1))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


Scenario = Callable[[Place], str]
SCENARIOS: dict[str, Scenario] = {}


def provokes(key: str) -> Callable[[Scenario], Scenario]:
    """Enter a scenario under the reason code of its message, or its first words."""

    def enter(scenario: Scenario) -> Scenario:
        assert key not in SCENARIOS
        SCENARIOS[key] = scenario
        return scenario

    return enter


# Before anything starts


@provokes("usage")
def misspell_an_option(place):
    return place.print("participant", "--partcipant-label", "01")


@provokes("no-input")
def name_a_folder_that_is_not_there(place):
    shutil.rmtree(place.dataset)
    return place.embed()


@provokes("raw-dataset")
def give_the_raw_data(place):
    raw = place.folder / "raw"
    func = raw / "sub-01/func"
    func.mkdir(parents=True)
    (func / f"{RUN}_bold.nii.gz").write_bytes(b"")
    shutil.move(place.dataset, raw / "derivatives/fmriprep")
    return place.print_plainly(raw, place.output, "participant")


@provokes("no-participant")
def ask_for_a_label_without_its_zero(place):
    return place.embed("--participant-label", "1")


@provokes("no-bold")
def give_a_person_without_functional_files(place):
    shutil.rmtree(place.dataset / "sub-01/func")
    return place.embed()


@provokes("no-runs")
def ask_for_another_task(place):
    return place.embed("--task-id", "nback")


@provokes("same-folder")
def write_into_the_input(place):
    return place.print_plainly(place.dataset, place.dataset, "participant")


@provokes("work-in-input")
def work_in_the_input(place):
    return place.embed("--work-dir", place.dataset / "work")


@provokes("not-writable")
def write_where_one_may_not(place):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    place.patch.setattr(Path, "mkdir", refuse)
    return place.embed()


@provokes("device-missing")
def ask_for_a_gpu_where_none_is(place):
    place.patch.setattr(torch.cuda, "device_count", lambda: 0)
    place.patch.setattr("slimbrain_app.device.read_driver", lambda *_: None)
    return place.embed("--device", "cuda")


@provokes("package-missing")
def misspell_the_model(place):
    return place.embed("--model", "tinny")


@provokes("package-bad")
def damage_the_model(place):
    package = place.folder / "mine"
    shutil.copytree(installed_packages() / "tiny", package)
    weights = package / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return place.embed("--model", package)


@provokes("no-head")
def explain_what_is_not_predicted(place):
    config = place.write("mine.toml", "[output]\nattribution = true\n")
    return place.embed("--config", config)


@provokes("settings-bad")
def misspell_a_setting(place):
    config = place.write("mine.toml", "[rank]\nwindow = 8\n")
    return place.embed("--config", config)


# A run was refused


@provokes("too-short")
def leave_nothing_after_the_dummies(place):
    return place.embed("--dummy-scans", 30)


@provokes("no-space")
def give_an_infant_template(place):
    place.rename(MODEL, "space-MNIInfant_cohort-1")
    return place.embed()


@provokes("minimal-level")
def leave_out_the_series(place):
    place.bold.unlink()
    place.sidecar.unlink()
    return place.embed()


@provokes("echo-only")
def give_single_echoes(place):
    for echo in (1, 2):
        shutil.copy(place.bold, place.find(f"echo-{echo}_desc-preproc_bold.nii.gz"))
    place.bold.unlink()
    return place.embed()


@provokes("no-mask")
def leave_out_the_mask(place):
    place.mask.unlink()
    return place.embed()


@provokes("mask-mismatch")
def give_the_mask_of_another_grid(place):
    image = nibabel.load(place.mask)
    nibabel.Nifti1Image(image.dataobj[:, :, 1:], image.affine).to_filename(place.mask)
    return place.embed()


@provokes("empty-mask")
def empty_the_mask(place):
    change_image(place.mask, lambda mask: 0 * mask)
    return place.embed()


@provokes("low-coverage")
def halve_the_mask(place):
    change_image(place.mask, lambda mask: cut(mask, 0.45))
    return place.embed()


def cut(mask, share):
    mask[:, int(share * mask.shape[1]) :] = 0
    return mask


@provokes("missing-content")
def leave_a_link_to_nowhere(place):
    place.bold.unlink()
    place.bold.symlink_to("../../.git/annex/objects/MD5E-s1--0.nii.gz")
    return place.embed()


@provokes("denied")
def close_the_file(place):
    whole = Path.open

    def refuse(path, *arguments, **options):
        if path == place.bold:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return whole(path, *arguments, **options)

    place.bold.chmod(0o600)
    place.patch.setattr(Path, "open", refuse)
    return place.embed()


@provokes("unreadable")
def give_a_page_of_the_web(place):
    place.bold.write_bytes(b"<html><body>Please log in</body></html>")
    return place.embed()


@provokes("truncated")
def cut_the_file_short(place):
    content = place.bold.read_bytes()
    place.bold.write_bytes(content[: len(content) // 2])
    os.utime(place.bold, (0, 0))
    return place.embed()


@provokes("not-4d")
def give_one_volume_without_time(place):
    change_image(place.bold, lambda series: series[..., 0])
    return place.embed()


@provokes("nan-volumes")
def lose_two_volumes(place):
    def lose(series):
        series[..., (7, 23)] = np.nan
        return series

    change_image(place.bold, lose)
    return place.embed()


@provokes("flat")
def repeat_one_volume(place):
    change_image(place.bold, lambda series: np.repeat(series[..., :1], series.shape[3], axis=3))
    return place.embed()


@provokes("no-geometry")
def take_the_form_codes(place):
    change_header(place.bold, sform_code=0, qform_code=0)
    return place.embed()


@provokes("bad-affine")
def move_one_of_the_forms(place):
    change_header(place.bold, sform_code=1, qform_code=1, qoffset_x=-90.5)
    return place.embed()


@provokes("no-tr")
def take_the_repetition_time(place):
    place.sidecar.write_text("{}")
    change_header(place.bold, pixdim=[1, 6, 6, 6, 0, 0, 0, 0])
    return place.embed()


@provokes("tr-conflict")
def say_another_repetition_time(place):
    return place.embed("--tr", 2.5)


@provokes("tr-range")
def write_milliseconds(place):
    change_json(place.sidecar, RepetitionTime=2000)
    return place.embed()


@provokes("irregular-timing")
def leave_gaps_between_volumes(place):
    place.sidecar.write_text(json.dumps({"VolumeTiming": [0, 2, 4, 9, 11]}))
    return place.embed()


@provokes("bad-sidecar")
def break_the_sidecar(place):
    place.sidecar.write_text('{"RepetitionTime": 2.0')
    return place.embed()


@provokes("bad-confounds")
def take_the_last_row_of_the_confounds(place):
    lines = place.confounds.read_text().splitlines()
    place.confounds.write_text("\n".join(lines[:-1]) + "\n")
    return place.embed()


@provokes("ambiguous")
def put_the_plain_file_beside_it(place):
    place.bold.with_suffix("").write_bytes(nibabel.load(place.bold).to_bytes())
    return place.embed()


@provokes("transform-missing")
def give_the_anatomy_s_space_only(place):
    place.rename(MODEL, "space-T1w")
    return place.embed()


@provokes("transform-bad")
def cut_the_warp_short(place):
    place.rename(MODEL, "space-T1w")
    warp = place.dataset / "sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"
    warp.parent.mkdir()
    warp.write_bytes(b"")
    return place.embed()


@provokes("no-template")
def give_another_template(place):
    place.rename(MODEL, "space-MNI152NLin6Asym")
    place.patch.setenv("TEMPLATEFLOW_HOME", str(place.folder / "templateflow"))
    return place.embed()


# Something broke on the way


@provokes("disk-full")
def fill_the_disk(place):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    place.patch.setattr(files.os, "fsync", refuse)
    return place.embed()


def shrink_the_gpu(place):
    """Pretend that there is a GPU, and that it has no room for a model."""
    whole = packages.load_encoder

    def load(package, name):
        if name == "cpu":
            return whole(package, name)
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "3.94 GiB of which 1.21 GiB is free"
        )

    place.patch.setattr(device, "choose_device", lambda _: "cuda")
    place.patch.setattr(embedding, "hold_device", lambda _: nullcontext())
    place.patch.setattr(packages, "load_encoder", load)


@provokes("out-of-memory")
def name_a_gpu_that_is_too_small(place):
    shrink_the_gpu(place)
    return place.embed("--device", "cuda")


@provokes("worker-killed")
def lose_the_run_s_process(place):
    place.patch.setattr(participant, "run_graph", lambda *_: {RUN: "worker-killed"})
    return place.embed("--mem", "8GB")


@provokes("timeout")
def let_the_run_s_process_stand_still(place):
    place.patch.setattr(participant, "run_graph", lambda *_: {RUN: "timeout"})
    return place.embed()


@provokes("internal")
def put_a_fault_into_the_program(place):
    def fail(*_):
        raise IndexError("list index out of range")

    place.patch.setattr(prepare, "prepare_run", fail)
    return place.embed()


@provokes("a fault of ours")
def put_a_fault_into_the_planning(place):
    def fail(*_):
        raise IndexError("list index out of range")

    place.patch.setattr(plan, "make_plan", fail)
    return place.embed()


# After an interrupted job


@provokes("stopped")
def end_the_job(place):
    place.patch.setattr(participant, "open_output", lambda *_: signal.raise_signal(signal.SIGTERM))
    return place.embed()


@provokes("locked")
def hold_the_lock(place):
    with files.lock(place.output / "logs/sub-01.lock", ""):
        return place.embed()


@provokes("still-written")
def call_while_the_file_grows(place):
    content = place.bold.read_bytes()
    place.bold.write_bytes(content[: len(content) // 2])
    return place.embed()


@provokes("Nothing was done")
def call_again(place):
    place.embed()
    return place.embed()


# Group level


@provokes("no-runs 2")
def tabulate_before_anything_is_embedded(place):
    return place.print("group")


@provokes("several-models")
def embed_two_people_differently(place):
    words = ("--participant-label", "02", "--windows", 2)
    place.print_of_all(*EMBED, *words)
    return place.print_of_all("group")


@provokes("output-bad")
def cut_a_table_short(place):
    (table,) = place.embedded.glob("sub-01/func/*stat-mean*.tsv")
    table.write_bytes(table.read_bytes()[:-20])
    return place.print_of_all("group")


@provokes("no-outcome")
def misspell_an_outcome(place):
    return foresee(place, "evaluate", "IQ", "participant_id iq", "sub-01 101", "sub-02 97")


@provokes("outcome-constant")
def take_people_of_one_sex(place):
    return foresee(place, "evaluate", "sex", "participant_id sex", "sub-01 F", "sub-02 F")


@provokes("too-few")
def take_one_person_of_each_sex(place):
    return foresee(place, "evaluate", "sex", "participant_id sex", "sub-01 F", "sub-02 M")


@provokes("leak")
def put_somebody_on_both_sides(place):
    rows = ("participant_id part", "sub-01 train", "sub-01 test", "sub-02 test")
    split = place.write("split.tsv", tabulate(rows))
    place.write("mine.toml", f'[judge]\nsplit = "{split}"\n')
    return foresee(place, "finetune", "iq", "participant_id iq", "sub-01 101", "sub-02 97")


def foresee(place, action: str, outcome: str, *rows: str) -> str:
    """Return what a dry run of the group level says, given rows of people."""
    table, config = place.write("people.tsv", tabulate(rows)), place.write("mine.toml")
    words = ("--action", action, "--outcome", outcome, "--phenotype", table, "--config", config)
    return place.print_of_all("group", *words, "--dry-run")


def tabulate(rows) -> str:
    return "".join(row.replace(" ", "\t") + "\n" for row in rows)


@provokes("atlas-missing")
def name_an_atlas_that_is_not_at_hand(place):
    place.patch.setenv("TEMPLATEFLOW_HOME", str(place.folder / "templateflow"))
    config = place.write("mine.toml", '[baseline]\natlas = "schaefer400"\n')
    words = ("--action", "evaluate", "--outcome", "age", "--config", config)
    return place.print_of_all("group", *words)


@provokes("prepared-bad")
def cut_a_prepared_run_short(place):
    (signal,) = place.embedded.glob("sub-01/func/*_prepared/signal.npy")
    signal.write_bytes(signal.read_bytes()[:-100])
    return print_refusals(place)


@provokes("other-contract")
def take_a_run_prepared_by_another_release(place):
    (record,) = place.embedded.glob("sub-01/func/*_prepared/run.json")
    change_json(record, contract=99)
    return print_refusals(place)


def print_refusals(place) -> str:
    """Return what is said at the end of a training on prepared runs of those that it left out."""
    found = plan_corpus([place.embedded], place.folder / "trained", PretrainSettings(), Contract())
    place.screen.readouterr()
    Terminal().show_refusals(one.refusal for one in found.refused)
    return place.screen.readouterr().err


@provokes("settings-changed")
def go_on_with_other_settings(place):
    return go_on(place, "0" * 64)


@provokes("corpus-changed")
def go_on_without_a_run(place):
    return go_on(place, PretrainSettings().fingerprint(), "sub-03_task-rest_run-01")


def go_on(place, settings: str, *runs: str) -> str:
    """Return what a training says that was begun with such settings, and with more runs."""
    found = plan_corpus([place.embedded], place.folder / "trained", PretrainSettings(), Contract())
    kept = [*found.recordings, *(replace(found.recordings[0], run=run) for run in runs)]
    corpus = Corpus(tuple(Item(one, (0,)) for one in kept), (), Contract())
    begun = place.folder / "trained/models/tiny/checkpoints/corpus.json"
    write_manifest(begun, Manifest.of(corpus, {}, settings))
    words = ("group", "--action", "pretrain", "--device", "cpu", "--nprocs", 1)
    return place.print_plainly(place.embedded, place.folder / "trained", *words)


@provokes("checkpoint-bad")
def cut_a_checkpoint_short(place):
    path = place.folder / "trained/models/tiny/checkpoints/state.pt"
    write_content(path, {"version": 1})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CallRefused) as refused:
        read_content(path)
    return f"slimbrain: {refused.value}"


# Reading odd warnings


@provokes("known-fault")
def take_a_release_with_a_fault(place):
    change_json(
        place.dataset / "dataset_description.json",
        GeneratedBy=[{"Name": "fMRIPrep", "Version": "25.1.3"}],
    )
    return place.embed("--dry-run")


@provokes("no-description")
def leave_out_the_description(place):
    (place.dataset / "dataset_description.json").unlink()
    return place.embed("--dry-run")


@provokes("caution")
def take_the_shipped_model(place):
    return place.embed("--dry-run")


@provokes("Model mine")
def take_a_model_that_has_learnt_nothing(place):
    create_package(place.folder / "mine", "tiny", seed=0)
    return place.embed("--dry-run", "--model", place.folder / "mine")


@provokes("no-confounds")
@provokes("unguarded")
@provokes("tr-from-header")
@provokes("several-spellings")
def leave_out_confounds_and_sidecar_beside_another_spelling(place):
    place.confounds.unlink()
    place.sidecar.unlink()
    for ending in ("desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"):
        path = place.find(f"{MODEL}_{ending}")
        shutil.copy(path, path.with_name(path.name.replace("run-01", "run-1")))
    return place.report()


@provokes("guard-relaxed")
@provokes("low-coverage 2")
@provokes("mask-other-grid")
@provokes("constant-voxels")
@provokes("tr-disagrees")
def move_with_a_mask_that_is_too_small_and_still_voxels(place):
    moving = ["0.1"] * 20 + ["0.8"] * 19
    place.confounds.write_text("\n".join(["framewise_displacement", "n/a", *moving]) + "\n")
    change_image(place.mask, lambda mask: cut(mask, 0.65))
    place.mask.rename(place.find(f"{MODEL}_res-3_desc-brain_mask.nii.gz"))
    change_image(place.bold, still)
    change_header(place.bold, pixdim=[1, 6, 6, 6, 1, 0, 0, 0])
    return place.report("--windows", 4)


def still(series):
    series[15:18, 15:18, 15:18] = 9_000
    return series


@provokes("moved-to-cpu")
def leave_the_device_to_slimbrain(place):
    shrink_the_gpu(place)
    return place.report("--device", "auto")


@provokes("confounds-unreadable")
@provokes("several-grids")
@provokes("denoised-source")
@provokes("mask-from-series")
def give_a_series_of_xcp_d_in_two_resolutions(place):
    change_json(
        place.dataset / "dataset_description.json",
        GeneratedBy=[{"Name": "xcp_d", "Version": "0.10.7"}],
    )
    place.rename("desc-preproc", "desc-denoised")
    place.mask.unlink()
    bold = place.find(f"{MODEL}_desc-denoised_bold.nii.gz")
    shutil.copy(bold, place.find(f"{MODEL}_res-3_desc-denoised_bold.nii.gz"))
    text = place.confounds.read_text()
    place.confounds.write_text(text.replace("framewise_displacement", "fd"))
    return place.report()


@provokes("not-ranked")
@provokes("no-covariance")
@provokes("seen-in-training")
def cut_a_run_to_one_window_that_the_model_has_seen(place):
    tiny = load_package("tiny")
    seen = json.dumps({"sha256": [files.sha256_of(place.bold)]})
    save_package(
        place.folder / "mine",
        tiny.config,
        load_encoder(tiny),
        readout=load_readout(tiny),
        card="# mine",
        records={"seen.json": seen},
    )
    return place.report("--model", place.folder / "mine", "--dummy-scans", 24)


@pytest.fixture(scope="module")
def finished(simulated, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "slimbrain"
    assert main([str(simulated), str(output), *EMBED, "--save-prepared"]) == 0
    return output


@pytest.fixture
def place(simulated, finished, tmp_path, capsys, monkeypatch) -> Place:
    place = Place(tmp_path, simulated, finished, capsys, monkeypatch)
    shutil.copytree(simulated, place.dataset)
    shutil.rmtree(place.dataset / "sub-02")
    return place


@pytest.fixture(scope="module")
def said() -> dict[Scenario, str]:
    """What scenarios have printed: one may be there for several messages."""
    return {}


@pytest.fixture(scope="module")
def messages(pages) -> dict[str, str]:
    """The page's messages by what they go by."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for _, block in pages[PAGE].blocks("text"):
        name = name_message(block)
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = block.strip()
    return found


def name_message(line: str) -> str:
    """Return the reason code in a line that is printed, or its first words."""
    bracketed = [code for code in re.findall(r"\[([a-z0-9-]+)\]", line) if code in REASONS]
    words = re.match(r"(?:slimbrain: )?([^;:(]*)", line)[1].split()
    leading = [word for word in words[:1] if word in REASONS]
    return next(iter(bracketed + leading), " ".join(words))


def settle(text: str) -> str:
    """Replace what varies."""
    for pattern, stand_in in VARYING.items():
        text = re.sub(pattern, stand_in, text)
    return text


@pytest.mark.parametrize("key", SCENARIOS)
def test_message_is_printed_as_it_stands_on_the_page(messages, place, said, key):
    scenario = SCENARIOS[key]
    if scenario not in said:
        said[scenario] = scenario(place).replace(str(place.folder), "/data")
    name = key.removesuffix(" 2")
    lines = [line for line in said[scenario].splitlines() if name_message(line) == name]
    assert lines, said[scenario]
    assert settle(lines[0]) == settle(messages[key])


def test_every_message_has_a_scenario_and_every_scenario_a_message(messages):
    assert set(messages) == set(SCENARIOS)


def test_every_reason_stands_on_the_page_or_is_left_to_another(messages):
    told = {code for code in REASONS if REASONS[code].scope is not Scope.WARNING}
    on_page = {key.removesuffix(" 2") for key in messages} & told
    assert on_page & set(ELSEWHERE) == set()
    assert on_page | set(ELSEWHERE) == told
