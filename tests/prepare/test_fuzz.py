"""Whatever a run's files hold: a prepared run or a refusal, in little memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import strategies as st

from slimbrain_app.errors import SlimBrainError
from slimbrain_app.prepare import prepare_run
from slimbrain_app.prepare.confounds import read_confounds, read_nuisance
from slimbrain_app.prepare.reading import open_series, read_mask
from slimbrain_app.prepare.reuse import find_prepared, open_prepared
from slimbrain_app.prepare.store import cell_means, mask_image, mean_image, read_frames
from slimbrain_app.prepare.transforms import map_points
from slimbrain_app.records import Contract, Recording
from slimbrain_app.settings import Prepare
from slimbrain_app.training.corpus import check_recordings

MOST = 400 << 20  # bytes; a volume of 512 cubed in int8 is a third of it.


@contextmanager
def in_little_memory() -> Iterator[None]:
    """What is asked of the allocator counts, used or not."""
    tracemalloc.start()
    try:
        with suppress(SlimBrainError):
            yield
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def image(shape=(6, 7, 8, 5), dtype=np.int16):
    affine = np.diag([4.0, 4, 4, 1])
    data = np.random.default_rng(0).integers(0, 900, shape).astype(dtype)
    return nibabel.Nifti1Image(data, affine).to_bytes()


DIMS = st.lists(st.sampled_from([-32768, -1, 0, 1, 2, 6, 7, 8, 32767]), min_size=8, max_size=8)
FLOATS = st.sampled_from([0.0, -1.0, 352.0, 400.0, 1e10, 3e38, np.inf, -np.inf, np.nan])
TYPES = st.sampled_from([-1, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2304])


def set_fields(dims, offset, slope, inter, kind, whole):
    content = bytearray(whole)
    content[40:56] = np.array(dims, "<i2").tobytes()
    content[70:74] = np.array([kind, 16], "<i2").tobytes()
    content[108:120] = np.array([offset, slope, inter], "<f4").tobytes()
    return bytes(content)


def odd_images(damage, whole):
    fields = st.builds(set_fields, DIMS, FLOATS, FLOATS, FLOATS, TYPES, st.just(whole))
    plain = fields | damage(whole, within=352) | damage(whole) | st.binary(max_size=400)
    packed = plain.map(gzip.compress) | damage(gzip.compress(whole)) | st.binary(max_size=60)
    return st.tuples(st.just(".nii"), plain) | st.tuples(st.just(".nii.gz"), packed)


def test_any_series_is_read_or_refused_in_little_memory(fuzz, damage, tmp_path):
    def holds(drawn):
        ending, content = drawn
        file = tmp_path / f"bold{ending}"
        file.write_bytes(content)
        with in_little_memory(), open_series(file, "bold") as series:
            buffers = [series.header.make_buffer() for _ in range(2)]
            for batch in series.batches(1, buffers):
                assert batch.shape[1:] == series.header.grid.shape[::-1]

    fuzz(holds, odd_images(damage, image()), examples=120)


def test_any_mask_is_read_or_refused_in_little_memory(fuzz, damage, tmp_path):
    def holds(drawn):
        ending, content = drawn
        file = tmp_path / f"mask{ending}"
        file.write_bytes(content)
        with in_little_memory():
            mask, grid = read_mask(file, "mask")
            assert mask.shape == grid.shape

    fuzz(holds, odd_images(damage, image((6, 7, 8), np.uint8)), examples=120)


def test_any_series_and_mask_are_prepared_or_refused(
    fuzz, damage, make_coarse, bold_like, coarse_mask, tmp_path
):
    run = make_coarse(bold_like(coarse_mask, 24).astype(np.int16))
    series, mask = (gzip.decompress(file.read_bytes()) for file in (run.bold, run.mask))

    def holds(bold, other, which):
        run.bold.write_bytes(gzip.compress(bold if which != "mask" else series, 1))
        run.mask.write_bytes(gzip.compress(other if which != "bold" else mask, 1))
        chosen = replace(run, mask=run.bold) if which == "its own mask" else run
        with suppress(SlimBrainError):
            prepare_run(chosen, tmp_path / "prepared", Prepare(), 28.08)

    def headers(whole):
        floats = np.frombuffer(whole[108:120], "<f4")
        fields = st.builds(
            set_fields,
            st.just([4, *coarse_mask.shape, 24, 1, 1, 1]),
            st.just(floats[0]),
            FLOATS,
            FLOATS,
            TYPES,
            st.just(whole),
        )
        return damage(whole, within=352) | fields

    which = st.sampled_from(["bold", "mask", "both", "its own mask"])
    fuzz(holds, headers(series), damage(mask, within=352), which, examples=12)


CONFOUNDS = b"framewise_displacement\ttrans_x\tcsf\tnon_steady_state_outlier00\n" + b"".join(
    b"%s\t0.1\t%d\t0\n" % (b"n/a" if row == 0 else b"0.1", row) for row in range(5)
)


def test_any_confounds_are_read_or_refused(fuzz, damage, tmp_path):
    file = tmp_path / "confounds.tsv"
    odd = [
        CONFOUNDS.decode().encode("utf-16"),
        CONFOUNDS.replace(b"csf", b'"' + b"csf\n" * 100_000),
        CONFOUNDS.replace(b"0.1", b"1e999"),
        CONFOUNDS.replace(b"0.1", b"nan"),
        CONFOUNDS.replace(b"0.1", b"9" * 5000),
        CONFOUNDS.replace(b"\n", b"\r"),
        CONFOUNDS.replace(b"trans_x", b"csf"),
    ]

    def holds(content, dummies):
        file.write_bytes(content)
        with suppress(SlimBrainError):
            read_confounds(file, "confounds", 5)
        with suppress(SlimBrainError):
            read_nuisance(file, "confounds", 5, dummies, 24)

    fuzz(
        holds,
        damage(CONFOUNDS) | st.binary(max_size=80) | st.sampled_from(odd),
        st.integers(0, 5),
        examples=120,
    )


AFFINE = b"""#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: 1 0 0 0 1 0 0 0 1 1 2 3
FixedParameters: 0 0 0
"""


def test_any_text_of_a_transform_is_read_or_refused(fuzz, damage, tmp_path):
    file = tmp_path / "xfm.txt"
    points = np.zeros((3, 3))
    odd = [
        AFFINE.replace(b"1 2 3", b"1 2 1e999"),
        AFFINE.replace(b"1 2 3", b"1 2"),
        AFFINE.replace(b"1 2 3", b"9" * 5000),
        AFFINE.replace(b"AffineTransform_double_3_3", b"BSplineTransform_double_3_3"),
        AFFINE.replace(b"AffineTransform_double_3_3", b"__import__"),
        AFFINE + AFFINE,
        b"",
    ]

    def holds(content):
        file.write_bytes(content)
        with suppress(SlimBrainError):
            assert np.isfinite(map_points(points, [file], ["xfm"])).all()

    fuzz(holds, damage(AFFINE) | st.binary(max_size=80) | st.sampled_from(odd), examples=120)


def write_composite(file):
    import h5py

    grid = [4, 5, 6, 0, 0, 0, 2.0, 2, 2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    parts = {
        "1": ("DisplacementFieldTransform_float_3_3", np.zeros(4 * 5 * 6 * 3), grid),
        "2": ("AffineTransform_float_3_3", [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3], [0.0, 0, 0]),
    }
    with h5py.File(file, "w") as made:
        for name, (kind, parameters, fixed) in [
            ("0", ("CompositeTransform_double_3_3", [], [])),
            *parts.items(),
        ]:
            group = made.create_group(f"TransformGroup/{name}")
            group["TransformType"] = np.array([kind.encode()])
            group["TransformParameters"] = np.array(parameters, np.float32)
            group["TransformFixedParameters"] = np.array(fixed, np.float64)


def test_any_composite_is_read_or_refused_in_little_memory(fuzz, damage, tmp_path):
    file = tmp_path / "xfm.h5"
    write_composite(file)
    whole = file.read_bytes()
    points = np.zeros((3, 3))
    assert np.allclose(map_points(points, [file], ["xfm"]), [-1, -2, 3])

    def holds(content):
        file.write_bytes(content)
        with in_little_memory():
            map_points(points, [file], ["xfm"])

    fuzz(holds, damage(whole, within=4000) | damage(whole) | st.binary(max_size=80), examples=150)


@pytest.mark.parametrize("sizes", [[4e5, 5e5, 6e5], [4, 5, 7]])
def test_a_field_of_absurd_size_is_refused(sizes, tmp_path):
    import h5py

    file = tmp_path / "xfm.h5"
    write_composite(file)
    with h5py.File(file, "r+") as made:
        made["TransformGroup/1/TransformFixedParameters"][:3] = sizes
    with in_little_memory():
        map_points(np.zeros((3, 3)), [file], ["xfm"])
        pytest.fail("it was read")


def test_any_prepared_run_is_used_or_refused(
    fuzz, damage, odd_json, make_coarse, bold_like, coarse_mask, tmp_path
):
    run = make_coarse(bold_like(coarse_mask, 24))
    folder = tmp_path / "prepared"
    prepare_run(run, folder, Prepare(), 28.08)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(whole["run.json"])

    def holds(drawn):
        for name, content in whole.items():
            (folder / name).write_bytes(drawn[1] if name == drawn[0] else content)
        find_prepared(run, folder, Prepare())
        with suppress(SlimBrainError):
            prepared = open_prepared(folder, "prepared")
            recording = Recording(dataset="d", participant="01", run=run.name, prepared=prepared)
            (usable, refused) = check_recordings([recording], Contract())
            assert len(usable) + len(refused) == 1
            if usable:
                read_frames(prepared, 0, 40, 0.72, "voxel")
                read_frames(prepared, 0, 40, 0.72, "global")
                cell_means(prepared)
                mean_image(prepared)
                mask_image(prepared)

    def put(text):
        others = {key: value for key, value in record.items() if key != "record"}
        return json.dumps(others)[:-1].encode() + b', "record": ' + text + b"}"

    arrays = [
        st.tuples(
            st.just(name), damage(content, within=140) | damage(content) | st.binary(max_size=40)
        )
        for name, content in whole.items()
        if name.endswith(".npy")
    ]
    records = odd_json(record) | odd_json(record["record"]).map(put)
    fuzz(holds, st.one_of(*arrays, st.tuples(st.just("run.json"), records)), examples=60)


def test_a_prepared_run_with_a_pickle_is_refused_unopened(
    make_coarse, bold_like, coarse_mask, tmp_path
):
    folder, trace = tmp_path / "prepared", tmp_path / "trace"
    prepared = prepare_run(make_coarse(bold_like(coarse_mask, 24)), folder, Prepare(), 28.08)

    class Hostile:
        def __reduce__(self):
            return trace.write_text, ("it ran",)

    recording = Recording(dataset="d", participant="01", run="r", prepared=prepared)
    for name in ("signal", "scale", "mean", "voxels"):
        whole = (folder / f"{name}.npy").read_bytes()
        np.save(folder / f"{name}.npy", np.array([Hostile()], object), allow_pickle=True)
        _, ((_, refusal),) = check_recordings([recording], Contract())
        assert (refusal.code, refusal.file) == ("prepared-bad", f"prepared/{name}.npy")
        (folder / f"{name}.npy").write_bytes(whole)
    assert not trace.exists()
