from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from slimbrain_app.bids.entities import parse_name
from slimbrain_app.bids.outputs import (
    has_person,
    is_current,
    is_whole,
    name_output,
    read_explanations,
    read_predictions,
    write_person,
    write_run,
)
from slimbrain_app.files import sha256_of
from slimbrain_app.prepare.reading import stamp
from slimbrain_app.records import (
    Explanation,
    Head,
    HeadScore,
    ParcelShare,
    Prediction,
    WindowShare,
)
from slimbrain_app.settings import Compute, Output, ParticipantSettings, Rank

STEM = "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-01_space-MNI152NLin2009cAsym"
PERSON = "sub-01/sub-01_desc-slimbrain_predictions"
AGE = Head(outcome="age", kind="number", people=41, units="years")
SEX = Head(
    outcome="sex",
    kind="class",
    people=40,
    classes=("F", "NA"),
    levels={"F": "female"},
    score=HeadScore(metric="AUROC", value=0.7, lower=0.6, upper=0.8, scheme="5 folds"),
)
PREDICTIONS = (
    Prediction(
        outcome="age",
        level=None,
        value=31.25,
        lower=27.5,
        upper=35.0,
        percentile=40.5,
        calibrated=True,
        flags=(),
    ),
    *(
        Prediction(
            outcome="sex",
            level=level,
            value=value,
            lower=None,
            upper=None,
            percentile=None,
            calibrated=False,
            flags=("untrained", "out-of-distribution"),
        )
        for level, value in (("F", 0.125), ("NA", 0.875))
    ),
)


def write(finished):
    return write_run(*finished.arguments)


def with_settings(finished, **changes):
    settings = replace(finished.provenance.settings, **changes)
    return replace(finished.provenance, settings=settings)


def test_names_are_those_of_the_contract(finished):
    written = write(finished)
    assert set(written) == {
        f"{STEM}_desc-slimbrain_mask.nii.gz",
        f"{STEM}_desc-slimbrain_mask.json",
        f"{STEM}_desc-slimbrain_windows.tsv",
        f"{STEM}_desc-slimbrain_windows.json",
        f"{STEM}_desc-slimbrain_embeddings.tsv",
        f"{STEM}_desc-slimbrain_embeddings.json",
        f"{STEM}_stat-mean_desc-slimbrain_embeddings.tsv",
        f"{STEM}_stat-mean_desc-slimbrain_embeddings.json",
    }
    on_disk = {f.relative_to(finished.output).as_posix() for f in finished.output.rglob("*.*")}
    on_disk -= {name for name in on_disk if "_prepared/" in name}
    assert on_disk == set(written)


def test_every_name_parses_back_into_its_entities(finished):
    for path in write(finished):
        entities = dict(parse_name(Path(path).name).entities)
        assert entities.pop("desc") == "slimbrain"
        assert entities.pop("space") == "MNI152NLin2009cAsym"
        assert entities.pop("stat", "mean") == "mean"
        assert tuple(entities.items()) == finished.run.entities


def test_run_padding_is_kept(finished):
    other = replace(finished.run, entities=(("sub", "01"), ("task", "rest"), ("run", "1")))
    contract = finished.provenance.model.contract
    assert "_run-1_" in name_output(other, contract, "windows", ".tsv")


def test_float32_survives_the_table(finished):
    write(finished)
    views = pd.read_csv(finished.output / f"{STEM}_desc-slimbrain_embeddings.tsv", sep="\t")
    mean = pd.read_csv(
        finished.output / f"{STEM}_stat-mean_desc-slimbrain_embeddings.tsv", sep="\t"
    )
    np.testing.assert_array_equal(
        views.filter(like="e0").to_numpy(np.float32), finished.embedding.views
    )
    np.testing.assert_array_equal(mean.to_numpy(np.float32)[0], finished.embedding.mean)
    assert list(views["window"]) == [0, 0, 1, 1]
    assert list(views["view"]) == [0, 1, 0, 1]


def test_mask_lies_on_the_model_grid(finished):
    write(finished)
    image = nib.load(finished.output / f"{STEM}_desc-slimbrain_mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).astype(bool), finished.mask)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-94.5, -112.5, -78.5, 1])
    assert image.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_every_column_is_described(finished):
    for name in write(finished):
        if name.endswith(".tsv"):
            columns = pd.read_csv(finished.output / name, sep="\t").columns
            sidecar = json.loads((finished.output / name).with_suffix(".json").read_text())
            if columns[-1].startswith("e"):  # Dimensions, described together.
                first, last = (column for column in columns if column in ("e0000", columns[-1]))
                assert sidecar[f"{first} to {last}"]["Units"] == "arbitrary"
                columns = columns[: list(columns).index(first)]
            assert all(sidecar[column]["Description"] for column in columns)


def test_sidecars_say_where_the_data_come_from(finished):
    for name in write(finished):
        if name.endswith(".json"):
            sidecar = json.loads((finished.output / name).read_text())
            sources = [uri.removeprefix("bids:preprocessed:") for uri in sidecar["Sources"]]
            assert all((finished.run.dataset / source).is_file() for source in sources)
            assert sidecar["Model"]["Trained"] is False
            assert sidecar["Seed"] == 0
            assert sidecar["Warnings"][0]["code"] == "no-confounds"


def sidecar_of(finished):
    write(finished)
    return json.loads((finished.output / f"{STEM}_desc-slimbrain_windows.json").read_text())


def with_sidecars(finished, **contents):
    """The run with JSONs of its own, of raw data that the dataset links to, and a template's."""
    dataset, raw = finished.run.dataset, finished.output.parent / "raw"
    description = json.loads((dataset / "dataset_description.json").read_text())
    links = {"DatasetLinks": {"raw": "../raw"}}
    (dataset / "dataset_description.json").write_text(json.dumps({**description, **links}))
    raw.mkdir()
    places = {"own": dataset / "own.json", "raw": raw / "task-rest_bold.json"}
    for name, content in contents.items():
        places[name].write_text(json.dumps(content))
    template = finished.output.parent / "tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_xfm.h5"
    template.write_bytes(b"x")
    sidecars = tuple(places[name] for name in contents)
    run = replace(finished.run, sidecars=sidecars, transforms=(template,))
    prepared = replace(
        finished.prepared,
        checksums=tuple((run.relative(path), sha256_of(path)) for path in run.sources),
        stamps=tuple(stamp(path, run.relative(path)) for path in run.sources),
    )
    return replace(finished, run=run, prepared=prepared)


def test_timing_of_the_source_is_passed_on(finished):
    assert not {"StartTime", "SliceTimingCorrected"} & sidecar_of(finished).keys()
    own = {"RepetitionTime": 2.0, "SliceTimingCorrected": True, "StartTime": 0.96, "EchoTime": 0.03}
    told = with_sidecars(finished, own=own, raw={"SliceTimingCorrected": False, "StartTime": 0})
    sidecar = sidecar_of(told)
    assert (sidecar["StartTime"], sidecar["SliceTimingCorrected"]) == (0.96, True)
    windows = pd.read_csv(told.output / f"{STEM}_desc-slimbrain_windows.tsv", sep="\t")
    assert windows["onset"][0] == told.ranked.windows[0].onset
    assert "EchoTime" not in sidecar


def test_sources_outside_of_the_dataset_are_named_by_what_links_to_them(finished):
    sources = sidecar_of(with_sidecars(finished, own={}, raw={}))["Sources"]
    assert sources[-3:] == [
        "bids:preprocessed:own.json",
        "bids:raw:task-rest_bold.json",
        "https://templateflow.s3.amazonaws.com/tpl-MNI152NLin2009cAsym/"
        "tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_xfm.h5",
    ]


def test_what_came_from_elsewhere_is_current_as_long_as_it_stays(finished):
    told = with_sidecars(finished, own={}, raw={"RepetitionTime": 2.0})
    write(told)
    assert is_current(told.output, told.run, told.provenance)
    told.run.sidecars[1].write_text("{}")
    assert not is_current(told.output, told.run, told.provenance)


def test_a_source_that_was_replaced_after_it_was_read_is_another(finished):
    replaced = finished.run.bold
    replaced.write_bytes(b"another")
    write(finished)
    assert not is_current(finished.output, finished.run, finished.provenance)


def test_a_source_that_went_after_it_was_read_costs_nothing(finished):
    finished.run.bold.unlink()
    write(finished)
    (told,) = finished.output.rglob("*_stat-mean_*.json")
    assert len(json.loads(told.read_text())["InputChecksums"]) == len(finished.run.sources)


def test_mean_displacement_leaves_out_the_first_volume(finished):
    prepared = replace(finished.prepared, displacement=(0.0, 0.1, 0.3))
    assert sidecar_of(replace(finished, prepared=prepared))["MeanFramewiseDisplacement"] == 0.2


def test_output_holds_no_absolute_path(finished, tmp_path):
    for name in write(finished):
        assert str(tmp_path).encode() not in (finished.output / name).read_bytes()


def test_what_was_written_is_current(finished):
    assert not is_current(finished.output, finished.run, finished.provenance)
    write(finished)
    assert is_current(finished.output, finished.run, finished.provenance)
    assert is_whole(finished.output, finished.run, finished.provenance.model.contract)


def test_limits_of_the_machine_do_not_make_it_stale(finished):
    write(finished)
    provenance = with_settings(finished, compute=Compute(nprocs=7), output=Output())
    assert is_current(finished.output, finished.run, provenance)


def test_other_settings_or_model_make_it_stale(finished):
    write(finished)
    ranked = with_settings(finished, rank=Rank(windows=3))
    seeded = with_settings(finished, seed=1)
    model = replace(finished.provenance.model, sha256="e" * 64)
    for provenance in (ranked, seeded, replace(finished.provenance, model=model)):
        assert not is_current(finished.output, finished.run, provenance)


def test_missing_extras_make_it_stale(finished):
    plain = replace(finished, provenance=with_settings(finished, output=Output()))
    write(plain)
    assert is_current(plain.output, plain.run, plain.provenance)
    for wanted in (Output(save_views=True), Output(save_prepared=True)):
        assert not is_current(plain.output, plain.run, with_settings(plain, output=wanted))


def test_a_touched_input_with_the_same_bytes_is_no_change(finished):
    write(finished)
    os.utime(finished.run.bold, ns=(1, 1))
    assert is_current(finished.output, finished.run, finished.provenance)
    finished.run.bold.write_bytes(b"blod")
    assert not is_current(finished.output, finished.run, finished.provenance)


@pytest.mark.parametrize(
    "ending",
    ["mask.nii.gz", "mask.json", "windows.tsv", "windows.json", "stat-mean_*embeddings.json"],
)
def test_a_lost_or_damaged_output_is_noticed(finished, ending):
    write(finished)
    (victim,) = finished.output.rglob(f"*{ending}")
    victim.write_bytes(victim.read_bytes()[:-20])
    assert not is_current(finished.output, finished.run, finished.provenance)
    assert not is_whole(finished.output, finished.run, finished.provenance.model.contract)
    victim.unlink()
    assert not is_current(finished.output, finished.run, finished.provenance)


def test_a_failure_leaves_whole_files_only_and_no_run_that_counts(finished):
    lost = replace(finished.prepared, folder=finished.prepared.folder / "gone")
    with pytest.raises(FileNotFoundError):
        write(replace(finished, prepared=lost))
    files = [path.name for path in finished.output.rglob("*") if path.is_file()]
    assert not any(name.startswith(".slimbrain-") or name.endswith(".json") for name in files)
    assert not is_whole(finished.output, finished.run, finished.provenance.model.contract)


def test_written_twice_the_bytes_are_the_same(finished, tmp_path):
    first = write(finished)
    second = replace(finished, output=tmp_path / "again")
    write(second)
    for name in first:
        assert (finished.output / name).read_bytes() == (second.output / name).read_bytes()


def test_settings_are_told_without_the_machine(finished):
    assert ParticipantSettings().fingerprint() == finished.provenance.settings.fingerprint()


@pytest.fixture
def predicted(finished):
    """The run, by a package with heads."""
    model = replace(finished.provenance.model, heads=(AGE, SEX))
    provenance = replace(finished.provenance, model=model)
    return replace(finished, provenance=provenance, predictions=PREDICTIONS)


def test_predictions_are_a_table_with_a_row_for_a_number_and_for_each_class(predicted):
    assert f"{STEM}_desc-slimbrain_predictions.tsv" in write(predicted)
    text = (predicted.output / f"{STEM}_desc-slimbrain_predictions.tsv").read_text()
    assert [line.split("\t") for line in text.splitlines()] == [
        "outcome level value lower upper percentile calibrated flag".split(),
        "age n/a 31.25 27.5 35 40.5 yes n/a".split(),
        "sex F 0.125 n/a n/a n/a no untrained,out-of-distribution".split(),
        "sex NA 0.875 n/a n/a n/a no untrained,out-of-distribution".split(),
    ]


def test_predictions_are_read_as_they_were_written(predicted):
    write(predicted)
    table = predicted.output / f"{STEM}_desc-slimbrain_predictions.tsv"
    assert read_predictions(table) == PREDICTIONS


def test_columns_of_predictions_tell_units_classes_and_how_good_the_heads_are(predicted):
    write(predicted)
    facts = json.loads((predicted.output / f"{STEM}_desc-slimbrain_predictions.json").read_text())
    for column in ("value", "lower", "upper"):
        assert facts[column]["Units"] == "years (age), probability (sex)"
    assert facts["level"]["Levels"] == {"F": "sex: female", "NA": "sex: NA"}
    assert "41 people" in facts["outcome"]["Levels"]["age"]
    assert "unknown" in facts["outcome"]["Levels"]["age"]
    assert "AUROC 0.70" in facts["outcome"]["Levels"]["sex"]
    assert facts["flag"]["Levels"].keys() > {flag for row in PREDICTIONS for flag in row.flags}
    assert facts["Sources"] and facts["Model"]["SHA256"] == "f" * 64


def test_a_run_without_its_predictions_is_not_current(predicted):
    write(predicted)
    assert is_current(predicted.output, predicted.run, predicted.provenance)
    (predicted.output / f"{STEM}_desc-slimbrain_predictions.tsv").unlink()
    assert not is_current(predicted.output, predicted.run, predicted.provenance)


def test_predictions_go_where_a_package_without_heads_takes_over(predicted, finished):
    write(predicted)
    write(finished)
    assert not list(finished.output.rglob("*predictions*"))
    assert is_current(finished.output, finished.run, finished.provenance)


def test_predictions_of_a_person_name_the_runs_and_their_embeddings(predicted, tmp_path):
    write(predicted)
    arguments = (predicted.output, "01", [predicted.run], PREDICTIONS, predicted.provenance)
    assert not has_person(*arguments[:2])
    write_person(*arguments)
    assert has_person(*arguments[:2])
    assert read_predictions(predicted.output / f"{PERSON}.tsv") == PREDICTIONS
    facts = json.loads((predicted.output / f"{PERSON}.json").read_text())
    assert facts["Runs"] == [predicted.run.name]
    (source,) = facts["Sources"]
    assert (predicted.output / source.removeprefix("bids::")).is_file()
    columns = pd.read_csv(predicted.output / f"{PERSON}.tsv", sep="\t").columns
    assert all(facts[column]["Description"] for column in columns)
    assert str(tmp_path) not in (predicted.output / f"{PERSON}.json").read_text()


def test_predictions_of_a_person_go_where_there_are_none(predicted):
    arguments = (predicted.output, "01", [predicted.run])
    write_person(*arguments, PREDICTIONS, predicted.provenance)
    write_person(*arguments, (), predicted.provenance)
    assert not has_person(predicted.output, "01")
    assert not list(predicted.output.rglob("*predictions*"))


def test_a_name_of_a_person_parses_back(predicted):
    name = parse_name(Path(f"{PERSON}.tsv").name)
    assert (name.entities, name.suffix) == ((("sub", "01"), ("desc", "slimbrain")), "predictions")


def explain(finished) -> tuple[Explanation, ...]:
    """Two outputs, each with a map of 1, 2, 3 and another sign along the mask."""
    windows = tuple(
        WindowShare(
            window=place, onset=2.0, duration=28.8, contribution=0.1 * place, over_baseline=-0.5
        )
        for place in (1, 0)
    )
    parcels = (
        ParcelShare(
            parcel=7, name="7Networks_LH_Vis_7", network="Vis", voxels=2, attribution=3.0, share=0.5
        ),
        ParcelShare(
            parcel=0, name="outside parcels", network=None, voxels=1, attribution=3.0, share=0.5
        ),
    )
    return tuple(
        Explanation(
            outcome=outcome,
            level=level,
            units=units,
            output=2.5,
            baseline=1.0,
            gap=0.001,
            points=16,
            pooling="covariance",
            parcels=parcels,
            windows=windows,
            values=np.array([1, 2, 3], np.float32) * sign,
        )
        for outcome, level, units, sign in (("age", None, "years", 1), ("sex", "2", "log odds", -1))
    )


def test_maps_lie_where_the_mask_does_and_the_rest_is_zero(finished):
    write(replace(finished, explanations=explain(finished)))
    (path,) = finished.output.rglob("*_desc-slimbrain_attribution.nii.gz")
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    assert (values.shape, values.dtype) == ((96, 96, 96, 2), np.float32)
    assert values[40, 50, 60:63].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert np.count_nonzero(values) == 6
    # Left of the middle in MNI space, where the voxel is.
    assert image.affine @ [40, 50, 60, 1] == pytest.approx([-14.5, -12.5, 41.5, 1])


def test_explanations_are_read_back_as_they_were_written(finished):
    contract, told = finished.provenance.model.contract, explain(finished)
    assert read_explanations(finished.output, finished.run, contract) == ()
    write(replace(finished, explanations=told))
    back = read_explanations(finished.output, finished.run, contract)
    assert [asdict(one) for one in back] == [asdict(replace(one, values=None)) for one in told]


def test_maps_that_are_wished_and_not_there_make_a_run_stale_and_old_ones_go(finished):
    wished = with_settings(finished, output=Output(attribution=True))
    write(finished)
    assert not is_current(finished.output, finished.run, wished)
    write(replace(finished, explanations=explain(finished)))
    assert is_current(finished.output, finished.run, wished)
    sidecars = list(finished.output.rglob("*_attribution.json"))
    assert [one["Outcome"] for one in json.loads(sidecars[0].read_text())["Maps"]] == ["age", "sex"]
    write(finished)
    assert not [*finished.output.rglob("*_attribution*"), *finished.output.rglob("*_contrib*")]
