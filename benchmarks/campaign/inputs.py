"""Faults that strike inputs: they are damaged, or go, come or change while the call goes on."""

from __future__ import annotations

import gzip
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path

from campaign.case import Case
from campaign.kinds import Expected, expect, kind
from campaign.stage import BOLD
from slimbrain_app.errors import REASONS, Exit, Scope

BOLDS, MASKS = "*/func/*_bold.nii.gz", "*/func/*_mask.nii.gz"
CONFOUNDS, SIDECARS = "*/func/*_timeseries.tsv", "*/func/*_bold.json"
IMAGES = "*/func/*_[bm][oa][ls][dk].nii.gz"
# Whatever is wrong with the data of a run, and nothing that is wrong with the machine.
BAD_DATA = tuple(
    code
    for code, reason in REASONS.items()
    if (reason.scope, reason.exit_code) == (Scope.RUN, Exit.DATA)
    and code not in ("out-of-memory", "worker-killed", "timeout", "output-bad", "prepared-bad")
)


@kind("bold-cut", 8)
def cut_bold(case: Case) -> Expected:
    """A BOLD file is cut at any byte."""
    file, young = case.choose(BOLDS), case.draw.random() < 0.3
    cut(case, file, file.stat().st_size, young=young)
    return expect("truncated", "unreadable", *(["still-written"] if young else []))


@kind("mask-cut", 5)
def cut_mask(case: Case) -> Expected:
    """A mask is cut at any byte."""
    file = case.choose(MASKS)
    cut(case, file, file.stat().st_size)
    return expect("truncated", "unreadable")


@kind("confounds-cut", 5)
def cut_confounds(case: Case) -> Expected:
    """A confounds table is cut at any byte."""
    file = case.choose(CONFOUNDS)
    whole = file.read_bytes()
    cut(case, file, len(whole))
    left = file.read_bytes()
    shapes = [[line.count(b"\t") for line in text.splitlines()] for text in (whole, left)]
    # Nothing tells that the last number had more digits; a table of nothing is no table.
    case.altered = left == b"" or shapes[0] == shapes[1]
    return expect("done") if case.altered else expect("bad-confounds")


@kind("json-cut", 4)
def cut_json(case: Case) -> Expected:
    """The JSON of a BOLD file is cut at any byte."""
    file = case.choose(SIDECARS)
    cut(case, file, len(file.read_bytes().rstrip()))
    return expect("bad-sidecar")


def cut(case: Case, file: Path, size: int, *, young: bool = False) -> None:
    """Leave less than so many bytes of a file, sometimes none."""
    kept = 0 if case.draw.random() < 0.1 else case.draw.randrange(size)
    case.damage(file, file.read_bytes()[:kept], young=young)


@kind("header-cut", 4)
def cut_header(case: Case) -> Expected:
    """A BOLD or mask ends within its header, in whole gzip."""
    file = case.choose(IMAGES)
    whole = gzip.decompress(file.read_bytes())
    case.damage(file, gzip.compress(whole[: case.draw.randrange(352)]))
    return expect("truncated", "unreadable")


@kind("bit-flipped", 12)
def flip_bit(case: Case) -> Expected:
    """A bit of a BOLD or mask file is another."""
    file = case.choose(case.draw.choice([BOLDS, MASKS]))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[case.draw.randrange(len(whole))] ^= 1 << case.draw.randrange(8)
    case.damage(file, bytes(flipped))
    with suppress(OSError, EOFError, zlib.error):
        if gzip.decompress(flipped) == gzip.decompress(whole):
            return expect("done")  # As in gzip's note of a time.
    return expect(*BAD_DATA)


@kind("input-removed", 6)
def remove_input(case: Case) -> Expected:
    """A BOLD or mask vanishes while the call goes on."""
    file = case.choose(IMAGES)
    case.restore(file)
    case.start_and_wait(for_plan=True)
    file.unlink()
    case.accept(file)
    return expect("missing-content", "still-written", "done")


@kind("input-replaced", 6)
def replace_input(case: Case) -> Expected:
    """A BOLD gives way to another while the call goes on."""
    file, other = case.dataset / BOLD[0], case.dataset / ".other"
    shutil.copy2(case.dataset / BOLD[1], other)
    case.altered = True
    case.clean = case.stage.replaced
    case.start_and_wait(for_plan=True)
    other.replace(file)
    case.accept(other)
    case.accept(file)
    return expect("still-written", "done")


@kind("input-growing", 5)
def grow_input(case: Case) -> Expected:
    """A BOLD is still being written while the call goes on."""
    file = case.choose(BOLDS)
    whole = file.read_bytes()
    done = int(len(whole) * case.draw.uniform(0.3, 0.95))
    case.damage(file, whole[:done], young=True)
    pause = case.seconds * case.draw.uniform(0.3, 1.5) / 40
    step = (len(whole) - done) // 40 + 1
    call = case.start()
    while done < len(whole) and not call.ended:
        with file.open("ab") as stream:
            stream.write(whole[done : done + step])
        done += step
        time.sleep(pause)
    case.accept(file)
    return expect("still-written", "done")


@kind("not-readable", 8, root=True)
def forbid_input(case: Case) -> Expected:
    """An input may not be read, or its folder."""
    places = [BOLDS, MASKS, CONFOUNDS, SIDECARS, "sub-*/func", "sub-*"]
    case.forbid(case.choose(case.draw.choice(places)), 0)
    return expect("denied")


@kind("dangling-link", 6)
def dangle_link(case: Case) -> Expected:
    """An input is a link that leads nowhere."""
    place = case.draw.choice([BOLDS, MASKS, CONFOUNDS, SIDECARS, "all"])
    every = place == "all"
    for file in sorted(case.dataset.glob(BOLDS)) if every else [case.choose(place)]:
        case.restore(file)
        file.unlink()
        file.symlink_to(Path("../../.git/annex/objects") / file.name)
    if every:
        return Expected(frozenset({"missing-content"}), frozenset({int(Exit.NO_INPUT)}))
    return expect("missing-content", *(["bad-sidecar"] if place == SIDECARS else []))
