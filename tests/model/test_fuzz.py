"""Whatever a model package holds: it is loaded or refused, and nothing in it is executed."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import sha256_of
from slimbrain_app.model.packages import (
    CHECKSUMS,
    CONFIG,
    describe_seen,
    load_encoder,
    load_extractor,
    load_heads,
    load_package,
)


@pytest.fixture
def package(headed, tmp_path):
    """A copy of a package with heads and a readout, to be damaged."""
    return shutil.copytree(headed, tmp_path / "package")


def vouch(folder):
    """Write checksums of what is there: a package by somebody who knows what they do."""
    digests = {file.name: sha256_of(file) for file in folder.iterdir() if file.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(digests))


def load_all(folder):
    with suppress(CallRefused):
        package = load_package(folder)
        load_encoder(package)
        load_extractor(package)
        load_heads(package)
        describe_seen([], package)


@pytest.mark.parametrize("name", [CONFIG, "heads.json"])
def test_any_description_of_a_package_is_read_or_refused(fuzz, odd_json, package, name):
    file = package / name
    whole = json.loads(file.read_text())
    objects = [whole] if isinstance(whole, dict) else whole
    inner = [
        odd_json(value).map(
            lambda text, one=one, key=key: (
                json.dumps({k: v for k, v in one.items() if k != key})[:-1].encode()
                + f', "{key}": '.encode()
                + text
                + b"}"
            )
        )
        for one in objects
        for key, value in one.items()
        if isinstance(value, dict) and value
    ]
    contents = st.one_of(*map(odd_json, objects), *inner)
    if isinstance(whole, list):
        contents = contents.map(lambda text: b"[" + text + b"]")

    def holds(content):
        file.write_bytes(content)
        vouch(package)
        load_all(package)

    fuzz(holds, contents, examples=60)


def test_any_checksums_are_read_or_refused(fuzz, odd_json, package):
    whole = json.loads((package / CHECKSUMS).read_text())

    def holds(content):
        (package / CHECKSUMS).write_bytes(content)
        load_all(package)

    names = st.sampled_from(["../x", "/etc/passwd", "a\0b", "", ".", "x" * 5000, "\ud800"])
    odd_names = names.map(lambda name: json.dumps({**whole, name: "0" * 64}).encode())
    fuzz(holds, odd_json(whole) | odd_names, examples=60)


@pytest.mark.parametrize("name", ["heads.safetensors", "model.safetensors", "readout.safetensors"])
def test_any_weights_are_read_or_refused(fuzz, damage, package, name):
    whole = (package / name).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    tensor = next(key for key in header if key != "__metadata__")

    def write(size, fields):
        told = json.dumps({**header, tensor: {**header[tensor], **fields}}).encode()
        return (
            (len(told) if size is None else size).to_bytes(8, "little") + told + whole[8 + length :]
        )

    sizes = st.sampled_from([None, 0, 2**40, 2**64 - 1])
    shapes = st.sampled_from([[], [0], [2**40, 2**20], [-1], ["a"], None])
    fields = st.dictionaries(
        st.sampled_from(["shape", "data_offsets", "dtype"]),
        shapes | st.sampled_from(["F64", "I8", "F8_E5M2", "O", [10**18, 2 * 10**18]]),
    )
    contents = damage(whole, within=8 + length) | st.builds(write, sizes, fields)

    def holds(content):
        (package / name).write_bytes(content)
        vouch(package)
        load_all(package)

    fuzz(holds, contents | st.binary(max_size=60), examples=40)
