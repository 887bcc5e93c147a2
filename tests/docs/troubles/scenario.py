"""Scenarios: functions that break a person's derivatives, or a call on them.

A scenario returns what is printed then, or nothing: then a call at the participant level prints it.
It goes by the reason code of its message; by the first words where there is none. The second
message of a code on the page has a 2 after it.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
import pytest

from slimbrain_app.cli.app import main

RUN = "sub-01_task-rest_run-01"
MODEL = "space-MNI152NLin2009cAsym"
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

    def provoke(self, scenario: Scenario) -> str:
        """Return what is printed when something is broken."""
        printed = scenario(self)
        return self.embed() if printed is None else printed

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

    def say_maker(self, name: str, version: str) -> None:
        """Say that some program has made the derivatives."""
        made = [{"Name": name, "Version": version}]
        change_json(self.dataset / "dataset_description.json", GeneratedBy=made)


Scenario = Callable[[Place], str | None]
SCENARIOS: dict[str, Scenario] = {}


def provokes(*keys: str) -> Callable[[Scenario], Scenario]:
    """Enter a scenario under the reason codes of its messages, or their first words."""

    def enter(scenario: Scenario) -> Scenario:
        assert not SCENARIOS.keys() & keys
        SCENARIOS.update(dict.fromkeys(keys, scenario))
        return scenario

    return enter


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


def cut_short(path: Path, kept: int) -> None:
    """Leave so many bytes of a file; fewer than there are by so many if it is negative."""
    path.write_bytes(path.read_bytes()[:kept])


def keep_front(mask: np.ndarray, share: float) -> np.ndarray:
    """Leave a share of a mask, of the second axis."""
    mask[:, int(share * mask.shape[1]) :] = 0
    return mask


def raise_as(error: Exception) -> Callable[..., None]:
    """Return a function that fails, whatever it is given."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
