"""The transformer: the participant level's numbers, in scikit-learn's places."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.masking import compute_epi_mask
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from slimbrain_app import SlimBrainEmbedder, SlimBrainWarning
from slimbrain_app.api import model as verbs
from slimbrain_app.bids.discover import discover
from slimbrain_app.cli.app import main
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.model.packages import create_package
from slimbrain_app.prepare.grid import model_grid, template_brain
from slimbrain_app.settings import Prepare, Select

pytestmark = pytest.mark.filterwarnings("ignore::slimbrain_app.SlimBrainWarning")

IMAGE = nibabel.Nifti1Image(np.zeros((2, 2, 2, 2)), np.eye(4))
STEM = "sub-01_task-rest_run-01_space-MNI152NLin2009cAsym"
# Of scikit-learn's checks of transformers of tables, those that can't hold for images, and why.
_ROWS = "hands a table to transform, which takes images"
_UNREAD = "wants fit to look at the images, which it leaves to transform"
OUT_OF_REACH = {
    "check_complex_data": _UNREAD,
    "check_dict_unchanged": _ROWS,
    "check_dtype_object": _ROWS,
    "check_estimator_sparse_tag": _UNREAD,
    "check_estimators_dtypes": _ROWS,
    "check_estimators_empty_data_messages": _UNREAD,
    "check_estimators_nan_inf": _UNREAD,
    "check_estimators_pickle": _ROWS,
    "check_f_contiguous_array_estimator": _ROWS,
    "check_fit1d": _UNREAD,
    "check_fit2d_predict1d": _ROWS,
    "check_fit_idempotent": _ROWS,
    "check_fit_score_takes_y": _ROWS,
    "check_methods_sample_order_invariance": _ROWS,
    "check_methods_subset_invariance": _ROWS,
    "check_n_features_in": _UNREAD,
    "check_n_features_in_after_fitting": _UNREAD,
    "check_pipeline_consistency": _ROWS,
    "check_transformer_data_not_an_array": _ROWS,
    "check_transformer_general": _ROWS,
}


class ForTables(SlimBrainEmbedder):
    """One that claims to take tables, so that scikit-learn checks it as it checks its own."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = True, False
        return tags


@pytest.fixture
def embedder(small) -> SlimBrainEmbedder:
    """One that takes the first window."""
    return SlimBrainEmbedder(small, windows=1, ranking="first")


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the files that are prepared, one for each time."""
    names, prepare_run = [], verbs.prepare_run

    def count(run, *arguments):
        names.append(run.bold.name)
        return prepare_run(run, *arguments)

    monkeypatch.setattr(verbs, "prepare_run", count)
    return names


def read_row(output: Path) -> np.ndarray:
    (table,) = output.glob("sub-*/func/*_stat-mean_desc-slimbrain_embeddings.tsv")
    return pd.read_csv(table, sep="\t").to_numpy().astype(np.float32)


def test_every_parameter_is_that_of_the_command_line(simulated, small, tmp_path, find_bold):
    options = "--windows 2 --views 2 --ranking random --seed 3 --fd-threshold 0 --tr 2.0"
    call = [simulated, tmp_path, "participant", "--participant-label", "02", "--model", small]
    assert main([*map(str, call), *options.split(), "--nprocs", "1"]) == 0
    told = {"windows": 2, "views": 2, "ranking": "random", "seed": 3, "fd_threshold": 0, "tr": 2}
    bold, expected = find_bold(simulated, "02"), read_row(tmp_path)
    rows = SlimBrainEmbedder(small, **told).fit_transform([bold])
    np.testing.assert_array_equal(rows, expected)


def test_a_run_and_its_file_are_the_same_item(simulated, embedder, find_bold):
    run = discover(simulated, Select(participants=("01",)), Prepare()).runs[0]
    by_file, by_run = embedder.fit_transform([find_bold(simulated, "01"), run])
    np.testing.assert_array_equal(by_file, by_run)


def test_a_series_that_the_participant_level_leaves_aside_is_refused(
    simulated, embedder, tmp_path, make_image, find_bold
):
    shutil.copytree(simulated / "sub-01", tmp_path / "sub-01")
    left = find_bold(tmp_path, "01")
    taken = left.with_name(f"{STEM}_res-2_desc-preproc_bold.nii.gz")
    for kind in ("desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"):
        left.with_name(f"{STEM}_{kind}").rename(left.with_name(f"{STEM}_res-2_{kind}"))
    coarse = make_image(0, volumes=40)
    coarse.to_filename(left)
    coarse.slicer[..., 0].to_filename(left.with_name(f"{STEM}_desc-brain_mask.nii.gz"))
    assert discover(tmp_path, Select(), Prepare()).runs[0].bold == taken
    expected = embedder.fit_transform([find_bold(simulated, "01")])
    np.testing.assert_array_equal(embedder.transform([taken]), expected)
    with pytest.raises(RunRefused, match=rf"ambiguous.*{left}.*{taken.name}"):
        embedder.transform([left])


def test_an_image_is_embedded_as_the_file_of_it(images, embedder):
    loaded = [nibabel.load(path) for path in images[:2]]
    by_file, by_image = embedder.fit_transform(images[:2]), embedder.transform(loaded)
    np.testing.assert_array_equal(by_file, by_image)


def test_an_image_loses_nothing_to_the_type_of_its_header(embedder, tmp_path, make_image):
    whole = make_image(0)
    values = np.asarray(whole.dataobj) / 9000
    image = nibabel.Nifti1Image(values, whole.affine, whole.header)
    assert image.get_data_dtype() == np.int16
    exact = nibabel.Nifti1Image(values, whole.affine, whole.header, dtype=np.float64)
    exact.to_filename(tmp_path / "exact.nii")
    by_image, by_file = embedder.fit_transform([image, tmp_path / "exact.nii"])
    np.testing.assert_array_equal(by_image, by_file)


def test_a_lone_image_has_the_brain_that_nilearn_finds(images, embedder):
    mask = compute_epi_mask(images[0])
    assert 0 < mask.get_fdata().mean() < 1
    row = embedder.fit_transform(images[:1])
    np.testing.assert_array_equal(
        row, clone(embedder).set_params(mask=mask).fit_transform(images[:1])
    )


def test_one_mask_serves_all_items(simulated, embedder, tmp_path, make_image, find_bold):
    half = template_brain()
    half[:, 60:] = False
    mask = nibabel.Nifti1Image(half.astype(np.uint8), model_grid().affine)
    mask.to_filename(tmp_path / "half.nii.gz")
    items = [find_bold(simulated, "01"), make_image(3)]
    own = embedder.fit_transform(items)
    by_image = embedder.set_params(mask=mask).transform(items)
    by_path = embedder.set_params(mask=str(tmp_path / "half.nii.gz")).transform(items)
    np.testing.assert_array_equal(by_image, by_path)
    assert np.abs(by_image - own).max(axis=1).min() > 1e-3


def test_the_repetition_time_is_stated_beside_the_image_or_in_the_call(
    images, embedder, tmp_path, make_image
):
    bare = nibabel.Nifti1Image(nibabel.load(images[0]).get_fdata(), make_image(0).affine)
    with pytest.raises(RunRefused, match=r"no-tr.*X\[0\].*as nibabel leaves it"):
        embedder.fit_transform([bare])
    bare.to_filename(tmp_path / "bare.nii")
    (tmp_path / "bare.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    by_json = embedder.transform([tmp_path / "bare.nii"])
    by_call = embedder.set_params(tr=2.0).transform([bare])
    np.testing.assert_array_equal(by_json, embedder.transform(images[:1]))
    np.testing.assert_array_equal(by_json, by_call)
    with pytest.raises(RunRefused, match=r"tr-conflict.*bare\.nii"):
        embedder.set_params(tr=2.5).transform([tmp_path / "bare.nii"])


def test_what_is_drawn_for_an_image_hangs_on_nothing_else(small, make_image):
    embedder = SlimBrainEmbedder(small, windows=1, ranking="random").fit([])
    one, other = make_image(0, volumes=40), make_image(1, volumes=40)
    together, alone = embedder.transform([one, other]), embedder.transform([other])
    np.testing.assert_array_equal(together[1], alone[0])


@pytest.mark.parametrize("kind", ["missing", "text", "volume", "space", "short", "raw"])
def test_a_refusal_names_the_item_in_full(kind, embedder, tmp_path, make_image):
    names = {
        "space": "sub-01_space-T1w_desc-preproc_bold.nii",
        "raw": "sub-01/func/sub-01_bold.nii",
    }
    path = tmp_path / names.get(kind, f"{kind}.nii")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        path.write_text("no image" * 100)
    elif kind != "missing":
        make_image(0, volumes=2 if kind == "short" else 16).to_filename(path)
    if kind == "volume":
        nibabel.four_to_three(make_image(0))[0].to_filename(path)
    codes = {"missing": "missing-content", "text": "unreadable", "volume": "not-4d"}
    codes |= {"space": "no-space", "short": "too-short", "raw": "raw-dataset"}
    with pytest.raises((RunRefused, CallRefused)) as caught:
        embedder.fit_transform([path])
    assert caught.value.reason == codes[kind]
    assert str(path) in caught.value.file


def test_volumes_without_finite_values_are_refused_as_such(embedder, make_image):
    image = make_image(0)
    values = image.get_fdata()
    values[..., 7] = np.nan
    with pytest.raises(RunRefused, match=r"nan-volumes.*X\[0\].*: 7\."):
        embedder.fit_transform(
            [nibabel.Nifti1Image(values, image.affine, image.header, dtype=float)]
        )


@pytest.mark.parametrize(
    "given",
    ["a.nii", Path("a.nii"), IMAGE, [], np.zeros((2, 3)), pd.DataFrame({"a": ["b"]})],
)
def test_what_is_no_sequence_of_images_is_refused(given, embedder):
    with pytest.raises(CallRefused, match=r"usage\] X: expected a sequence"):
        embedder.fit(given).transform(given)


@pytest.mark.parametrize("given", [3.5, None, ["a.nii"]])
def test_what_is_no_image_is_refused_by_its_place(given, images, embedder):
    with pytest.raises(CallRefused, match=rf"usage\] X\[1\].*found {type(given).__name__}"):
        embedder.fit_transform([images[0], given])


@pytest.mark.parametrize(
    "parameter",
    [{"windows": 0}, {"windows": "some"}, {"ranking": "best"}, {"views": 0}, {"fd_threshold": -1},
     {"tr": 100}, {"seed": -1}, {"device": "gpu"}, {"model": "none"}],
)  # fmt: skip
def test_a_parameter_out_of_its_range_is_refused_when_fitting(parameter):
    with pytest.raises(CallRefused):
        SlimBrainEmbedder(**parameter).fit([])


def test_an_untrained_package_is_called_so(tmp_path):
    create_package(tmp_path / "drawn", "tiny", seed=1)
    with pytest.warns(SlimBrainWarning, match="drawn is untrained"):
        SlimBrainEmbedder(tmp_path / "drawn").fit([])


def test_a_caution_of_the_package_is_told():
    with pytest.warns(SlimBrainWarning, match=r"\[caution\] tiny: .*in invented voxels"):
        SlimBrainEmbedder().fit([])


def test_warnings_of_runs_come_once_for_each_code_even_from_memory(images, embedder, tmp_path):
    embedder.set_params(memory=str(tmp_path)).fit([])
    for _ in range(2):
        with pytest.warns(SlimBrainWarning) as told:
            embedder.transform(images[:2])
        texts = [str(one.message) for one in told]
        codes = [text.split()[0] for text in texts]
        assert {"[tr-from-header]", "[no-confounds]", "[unguarded]"} <= set(codes)
        assert len(codes) == len(set(codes))
        assert all(images[0] in text and text.endswith("(and 1 more)") for text in texts)


def test_folds_score_as_on_a_table_and_embed_each_image_once_in_all_processes(
    images, embedder, computed, tmp_path
):
    outcome = ["a", "b", "a", "b"]
    head = make_pipeline(StandardScaler(), LogisticRegression())
    expected = cross_val_score(head, embedder.fit_transform(images), outcome, cv=2)
    computed.clear()
    pipeline = make_pipeline(embedder.set_params(memory=tmp_path), head)
    np.testing.assert_array_equal(cross_val_score(pipeline, images, outcome, cv=2), expected)
    assert sorted(computed) == [Path(path).name for path in images]
    by_two = cross_val_score(pipeline, images, outcome, cv=2, n_jobs=2)
    np.testing.assert_array_equal(by_two, expected)
    assert len(list(tmp_path.rglob("output.pkl"))) == len(images)


def test_a_search_tries_numbers_of_windows(small, computed, tmp_path, make_image):
    series = [make_image(seed, volumes=24) for seed in range(4)]
    embedder = SlimBrainEmbedder(small, ranking="first", memory=str(tmp_path))
    pipeline = make_pipeline(embedder, LogisticRegression())
    outcome = [0, 1, 0, 1]
    grid = {"slimbrainembedder__windows": np.array([1, 2])}
    search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss").fit(series, outcome)
    first, second = search.cv_results_["mean_test_score"]
    assert first != second
    assert len(computed) == 8
    expected = cross_val_score(
        pipeline.set_params(slimbrainembedder__windows=2),
        series, outcome, cv=2, scoring="neg_log_loss",
    )  # fmt: skip
    assert second == expected.mean()
    assert len(computed) == 8


def test_what_has_changed_is_embedded_anew(
    embedder, computed, simulated, tmp_path, make_image, find_bold
):
    embedder.set_params(memory=str(tmp_path / "kept")).fit([])
    shutil.copytree(simulated / "sub-01", tmp_path / "sub-01")
    items = [tmp_path / "lone.nii", find_bold(tmp_path, "01"), make_image(2)]
    make_image(0).to_filename(items[0])
    before = embedder.transform(items)
    np.testing.assert_array_equal(embedder.transform(items), before)
    assert len(computed) == 3
    make_image(1).to_filename(items[0])
    (confounds,) = items[1].parent.glob("*_desc-confounds_timeseries.tsv")
    confounds.unlink()
    items[2].dataobj[12, 12, 12] += 1
    after = embedder.transform(items)
    assert not np.array_equal(after[0], before[0])
    assert len(computed) == 6
    brain = template_brain().astype(np.uint8)
    for share in (1, 2):
        brain[:, : 48 - 24 // share] = 0
        mask = nibabel.Nifti1Image(brain, model_grid().affine)
        embedder.set_params(mask=mask).transform(items[2:])
        assert len(computed) == 6 + share


def test_columns_are_called_as_in_the_tables_of_the_command_line(images, embedder):
    embedder.set_output(transform="pandas")
    series = pd.Series(images[:2], index=["first", "second"])
    table = embedder.fit_transform(series)
    assert table.columns.tolist() == [f"e{i:04d}" for i in range(16)]
    assert table.index.tolist() == ["first", "second"]
    assert embedder.n_features_out_ == 16


def test_a_fitted_transformer_survives_being_pickled(images, embedder):
    expected = embedder.fit_transform(images[:1])
    again = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(again.transform(images[:1]), expected)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks_hold_but_for_those_that_need_tables():
    check_estimator(SlimBrainEmbedder(device="cpu"))
    told = check_estimator(ForTables(device="cpu"), on_fail=None, on_skip=None)
    by_status = defaultdict(set)
    for check in told:
        by_status[check["status"]].add(check["check_name"])
    assert by_status["failed"] == set(OUT_OF_REACH)
    assert len(by_status["passed"]) > 20


def test_the_order_of_images_is_that_of_rows(images, embedder):
    rows = embedder.fit_transform(images)
    np.testing.assert_array_equal(embedder.transform(images[::-1]), rows[::-1])
