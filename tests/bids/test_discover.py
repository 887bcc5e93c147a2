import builtins
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.bids.discover import check_dataset, discover, discover_participant
from slimbrain_app.errors import CallRefused
from slimbrain_app.records import decide_exit
from slimbrain_app.settings import Prepare, Select

MODEL = "space-MNI152NLin2009cAsym"


def run_files(name, space=f"_{MODEL}", tr=True):
    """BOLD, mask, confounds and sidecar of a run, in its participant's and session's folder."""
    labels = dict(part.split("-") for part in name.split("_"))
    session = f"ses-{labels['ses']}/" if "ses" in labels else ""
    stem = f"sub-{labels['sub']}/{session}func/{name}"
    yield f"{stem}{space}_desc-preproc_bold.nii.gz"
    yield f"{stem}{space}_desc-brain_mask.nii.gz"
    yield f"{stem}_desc-confounds_timeseries.tsv"
    if tr:
        yield f"{stem}{space}_desc-preproc_bold.json"


def find(dataset, prepare=None, **select):
    return discover(dataset, Select(**select), prepare or Prepare())


def names(found):
    return [run.name for run in found.runs]


def exit_code(found):
    return decide_exit(found.refused, len(found.refused) + len(found.runs))


def codes(found):
    return [refusal.code for refusal in found.refused]


def refusal_of(dataset, **select):
    with pytest.raises(CallRefused) as caught:
        find(dataset, **select)
    return caught.value


SOURCES = ("sub-01_ses-a_task-rest", "sub-01_ses-b_task-rest", "sub-02_ses-a_task-motor_run-01")


@pytest.fixture
def dataset(lay_out):
    return lay_out(*(file for name in SOURCES for file in run_files(name)))


def test_a_run_comes_with_all_its_files(dataset):
    run = find(dataset, participants=("02",)).runs[0]
    sources = [run.relative(source) for source in run.sources]
    assert sources == list(run_files(SOURCES[2]))
    assert run.entities == (("sub", "02"), ("ses", "a"), ("task", "motor"), ("run", "01"))
    assert (run.rung, run.repetition_time.seconds) == (0, 2.0)
    assert run.notices == ()


def test_participants_come_in_the_order_asked_for(dataset):
    assert names(find(dataset, participants=("02", "sub-01", "02"))) == [
        SOURCES[2],
        *SOURCES[:2],
    ]


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ({}, SOURCES),
        ({"sessions": ("ses-a",)}, (SOURCES[0], SOURCES[2])),
        ({"tasks": ("rest",)}, SOURCES[:2]),
        ({"runs": ("1",)}, SOURCES[2:]),
        ({"sessions": ("a",), "filters": {"task": ("rest",)}}, SOURCES[:1]),
        ({"filters": {"run": ()}}, SOURCES[:2]),
        ({"filters": {"space": ("MNI152NLin2009cAsym",)}}, SOURCES),
    ],
)
def test_all_filters_must_hold(dataset, select, chosen):
    assert names(find(dataset, **select)) == list(chosen)


def test_labels_with_and_without_prefix(dataset):
    plain = find(dataset, participants=("01",), sessions=("a",), tasks=("rest",))
    prefixed = find(dataset, participants=("sub-01",), sessions=("ses-a",), tasks=("task-rest",))
    assert plain == prefixed


def test_unknown_label_lists_neighbours(lay_out):
    dataset = lay_out(*(f"sub-{i:02}/anat/x" for i in range(20)))
    refusal = refusal_of(dataset, participants=("1",))
    assert (refusal.reason, refusal.exit_code) == ("no-participant", 66)
    assert "20 participants" in refusal.found
    assert "nearest 01, 10, 11, 12, 13" in refusal.found
    assert "mounted" in refusal.advice


@pytest.mark.parametrize(
    ("select", "emptied_by", "there"),
    [
        ({"sessions": ("c",)}, "ses c", "a, b"),
        ({"tasks": ("motor",), "sessions": ("b",)}, "task motor", "rest"),
        ({"tasks": ("rest",), "runs": ("1",)}, "run 1", "(none)"),
        ({"tasks": ("rest",), "filters": {"acquisition": ("x",)}}, "acq x", "(none)"),
        ({"filters": {"space": ("T1w",)}}, "space T1w", "MNI152NLin2009cAsym"),
    ],
)
def test_empty_selection_names_the_filter(dataset, select, emptied_by, there):
    refusal = refusal_of(dataset, **select)
    assert (refusal.reason, refusal.exit_code) == ("no-runs", 66)
    assert emptied_by in refusal.expected
    assert there in refusal.found


@pytest.mark.parametrize("files", [(), ("sub-01/anat/sub-01_T1w.nii.gz",), ("sub-01/func/x.txt",)])
def test_no_bold_at_all_is_said(lay_out, files):
    assert refusal_of(lay_out(*files)).reason == "no-bold"


def test_run_padding_is_kept_and_compared_by_value(lay_out):
    spelt = "sub-01_task-rest_run-01", "sub-01_task-rest_run-1"
    dataset = lay_out(*run_files(spelt[0]), *run_files(spelt[1]))
    found = find(dataset, runs=("1",))
    assert names(found) == list(spelt)
    for run in found.runs:
        assert all(f"{run.name}_" in source.name for source in run.sources)
        assert [notice.code for notice in run.notices] == ["several-spellings"]


def test_no_run_is_found_twice(lay_out):
    files = [
        file for space in (f"_{MODEL}", "_space-T1w", "") for file in run_files(SOURCES[0], space)
    ]
    assert names(find(lay_out(*files))) == [SOURCES[0]]


@pytest.fixture
def touched(monkeypatch):
    """Every path that is listed or opened from now on."""
    paths = []

    def watch(module, name):
        original = getattr(module, name)

        def watched(path, *arguments, **named):
            paths.append(os.fspath(path) if not isinstance(path, int) else str(path))
            return original(path, *arguments, **named)

        monkeypatch.setattr(module, name, watched)

    for module, name in ((os, "scandir"), (os, "listdir"), (io, "open"), (builtins, "open")):
        watch(module, name)
    return paths


KINDS = ("func", "anat")


def test_sourcedata_annex_and_work_are_never_entered(lay_out, touched):
    places = (
        *("sourcedata", "sourcedata/freesurfer", "work", ".git/annex", "derivatives/x", "logs"),
        *("sub-01/figures", "sub-01/log", "sub-01/ses-a/figures", "sub-01/ses-a/fmap"),
    )
    inside = [f"{place}/{file}" for place in places for file in run_files("sub-09_task-rest")]
    # Without a time in the sidecar all that may be listed is, and the anatomy for want of a mask.
    plain, unmasked = "sub-01_task-rest", "sub-01_ses-a_task-rest"
    bold, _, *others = run_files(unmasked, tr=False)
    dataset = lay_out(*run_files(plain, tr=False), bold, *others, *inside)
    touched.clear()
    found = find(dataset)
    assert (names(found), codes(found)) == ([plain], ["no-mask"])
    seen = {Path(path).relative_to(dataset).as_posix() for path in touched if str(dataset) in path}
    folders = {path for path in seen if (dataset / path).is_dir() or path.endswith("anat")}
    above = {".", "sub-01"}
    assert folders == above | {f"sub-01{ses}/{kind}" for ses in ("", "/ses-a") for kind in KINDS}


def test_only_the_sessions_asked_for_are_listed_and_no_anatomy_without_need(dataset, touched):
    touched.clear()
    assert names(find(dataset, participants=("01",), sessions=("a",))) == [SOURCES[0]]
    assert not [path for path in touched if "ses-b" in path or path.endswith("anat")]


@pytest.mark.parametrize("tr", [True, False])
def test_one_of_ten_thousand_reads_only_its_folders(lay_out, touched, tr):
    dataset = lay_out(*run_files("sub-0150_ses-a_task-rest", tr=tr))
    for label in range(10_000):
        (dataset / f"sub-{label:04}").mkdir(exist_ok=True)
    touched.clear()
    assert len(find(dataset, participants=("0150",)).runs) == 1
    inside = [Path(path).relative_to(dataset).parts for path in touched if str(dataset) in path]
    assert {parts[0] for parts in inside if parts} <= {"sub-0150", "dataset_description.json"}
    assert len(touched) <= 40
    # Only where nothing else states the repetition time is the root listed, once.
    assert inside.count(()) == (0 if tr else 1)


def test_metadata_is_read_for_chosen_files_only(lay_out, touched):
    spaces = (f"_{MODEL}", "_space-T1w", "_space-MNI152NLin6Asym")
    dataset = lay_out(*(file for space in spaces for file in run_files("sub-01_task-rest", space)))
    touched.clear()
    find(dataset)
    opened = {Path(path).name for path in touched if Path(path).is_file()}
    chosen = {Path(file).name for file in run_files("sub-01_task-rest")}
    assert opened <= chosen | {"dataset_description.json"}


def test_the_repetition_time_is_sought_step_by_step(lay_out):
    run, space = "sub-01_task-rest", f"_{MODEL}"
    stem = f"sub-01/func/{run}"
    description = {"DatasetType": "derivative", "DatasetLinks": {"raw": "../raw"}}
    own = {f"{stem}{space}_desc-preproc_bold.json": {"Sources": [f"bids:raw:{stem}_bold.nii.gz"]}}
    steps = [
        ("raw", f"../raw/{stem}_bold.json", 1.1),
        ("other grid", f"{stem}_space-T1w_desc-preproc_bold.json", 1.2),
        ("inherited sidecar", "task-rest_bold.json", 1.3),
        ("sidecar", f"{stem}{space}_desc-preproc_bold.json", 1.4),
    ]
    contents = dict(own)
    dataset = lay_out(*run_files(run, tr=False), contents=contents, description=description)
    assert find(dataset).runs[0].repetition_time.origin == "header"
    for origin, name, seconds in steps:
        contents[name] = {"RepetitionTime": seconds}
        lay_out(contents=contents, description=description)
        tr = find(dataset).runs[0].repetition_time
        assert (tr.origin, tr.seconds) == (origin, seconds)
    tr = find(dataset, Prepare(tr=1.4)).runs[0].repetition_time
    assert tr.origin == "command line"


def test_runs_with_different_grids_pass(lay_out, make_image):
    contents = {}
    for task, edge in (("a", 4), ("b", 4.002)):
        bold, mask, *_ = run_files(f"sub-01_task-{task}")
        contents |= {bold: make_image(edge=edge), mask: make_image((4, 5, 6), edge=edge)}
    assert len(find(lay_out(contents=contents)).runs) == 2


def test_minimal_level_is_named(lay_out):
    stem = "sub-01/func/sub-01_task-rest"
    files = [f"{stem}_desc-{kind}_boldref.nii.gz" for kind in ("hmc", "coreg")]
    found = find(lay_out(*files, f"{stem}_desc-brain_mask.nii.gz"))
    assert codes(found) == ["minimal-level"]
    assert "--derivatives" in found.refused[0].advice


def echoes(name="sub-01_task-rest"):
    return [file for echo in "123" for file in run_files(f"{name}_echo-{echo}", "")]


def test_echo_files_are_never_taken(lay_out):
    found = find(lay_out(*run_files("sub-01_task-rest"), *echoes()))
    assert names(found) == ["sub-01_task-rest"]
    assert "echo" not in "".join(source.name for source in found.runs[0].sources)


def test_echoes_alone_are_refused_as_one_run(lay_out):
    assert codes(find(lay_out(*echoes()))) == ["echo-only"]


@pytest.mark.parametrize(
    "runs",
    [
        ("sub-01_task-rest",),
        ("sub-01_ses-a_task-rest",),
        ("sub-01_ses-a_task-rest", "sub-01_ses-b_task-rest"),
        ("sub-01_ses-a_task-rest", "sub-01_task-rest"),
        ("sub-01_ses-a_task-rest", "sub-02_task-rest"),
    ],
)
def test_sessions_are_found_in_every_arrangement(lay_out, runs):
    found = find(lay_out(*(file for name in runs for file in run_files(name))))
    assert (names(found), found.refused) == (list(runs), ())


OF_OTHERS = [
    "sub-01_task-rest_bold.json",  # mriqc
    "sub-01_task-rest_run-2_bold.json",
    "sub-01_task-rest_run-1_setting-a_bold.nii.gz",  # halfpipe
    "sub-01_task-rest_run-1_setting-a_desc-confounds_regressors.tsv",
    "sub-01_task-rest_run-1_feature-b_seg-c_timeseries.tsv",
    "sub-01_task-rest_run-1_desc-optcom_bold.nii.gz",  # tedana
    "sub-01_task-rest_run-1_desc-optcomDenoised_bold.nii.gz",
    "sub-01_task-rest_run-1_desc-adaptiveGoodSignal_mask.nii.gz",
    "sub-01_task-rest_run-1_desc-tedana_metrics.tsv",
    f"sub-01_task-rest_run-1_{MODEL}_desc-slimbrain_mask.nii.gz",  # ours
    f"sub-01_task-rest_run-1_{MODEL}_desc-slimbrain_bold.nii.gz",
    f"sub-01_task-rest_run-1_{MODEL}_desc-slimbrain_windows.tsv",
    "layout_index.sqlite",
    "report.html",
]


def test_files_of_other_tools_are_neither_runs_nor_parts_of_one(lay_out):
    run = "sub-01_task-rest_run-1"
    plain = find(lay_out(*run_files(run), folder="plain")).runs[0]
    others = [f"sub-01/func/{name}" for name in OF_OTHERS]
    tops = ["sub-01.html", "layout_index.sqlite", ".heudiconv/sub-01/info/x.tsv", "group_bold.tsv"]
    dataset = lay_out(*run_files(run), *others, *tops)
    found = find(dataset)
    assert (names(found), found.refused) == ([run], ())
    together = found.runs[0]
    assert together.notices == plain.notices
    assert [path.name for path in together.sources] == [path.name for path in plain.sources]


def test_a_run_that_only_other_tools_name_is_listed(lay_out):
    lone = "sub-01/func/sub-01_task-rest_setting-a_bold.nii.gz"
    assert codes(find(lay_out(lone))) == ["no-space"]


def test_a_sidecar_that_several_runs_inherit_is_no_run(lay_out):
    runs = [f"sub-01_task-rest_run-{number}" for number in "12"]
    files = [file for run in runs for file in run_files(run, tr=False)]
    found = find(lay_out(*files, "sub-01/func/sub-01_task-rest_bold.json"))
    assert (names(found), found.refused) == (runs, ())
    assert {run.repetition_time.origin for run in found.runs} == {"inherited sidecar"}


def test_magnitude_is_taken_and_phase_never(lay_out):
    magnitude, phase = (
        list(run_files(f"sub-01_task-rest_part-{part}")) for part in ("mag", "phase")
    )
    run = find(lay_out(*magnitude, *phase)).runs[0]
    assert run.bold.name == magnitude[0].split("/")[-1]
    assert codes(find(lay_out(*phase, folder="phase"))) == ["no-space"]


def test_surfaces_alone_are_named(lay_out):
    stem = "sub-01/func/sub-01_task-rest"
    surfaces = [
        f"{stem}_hemi-L_space-fsaverage5_bold.func.gii",
        f"{stem}_space-fsLR_den-91k_bold.dtseries.nii",
    ]
    found = find(lay_out(*surfaces, f"{stem}_desc-confounds_timeseries.tsv"))
    assert codes(found) == ["no-space"]
    assert "fsaverage5" in found.refused[0].found and "fsLR den-91k" in found.refused[0].found


@pytest.mark.parametrize("desc", ["denoised", "smoothAROMAnonaggr", "optcom"])
def test_other_descriptors_are_taken_only_if_they_are_named(lay_out, desc):
    bold = f"sub-01/func/sub-01_task-rest_{MODEL}_desc-{desc}_bold.nii.gz"
    dataset = lay_out(bold, f"sub-01/func/sub-01_task-rest_{MODEL}_desc-brain_mask.nii.gz")
    assert codes(find(dataset)) == ["no-space"]
    assert find(dataset, filters={"desc": (desc,)}).runs[0].relative(dataset / bold) == bold


def test_the_preprocessed_series_is_chosen_among_descriptors(lay_out):
    others = [
        f"sub-01/func/sub-01_task-rest_{MODEL}_desc-{desc}_bold.nii.gz"
        for desc in ("denoised", "aroma", "smoothAROMAnonaggr")
    ]
    run = find(lay_out(*run_files("sub-01_task-rest"), *others)).runs[0]
    assert "desc-preproc" in run.bold.name


XCP_D = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "xcp_d", "Version": "0.10"}]}


def xcp_d_files(name, volumes=3):
    stem = f"sub-01/func/{name}"
    rows = "framewise_displacement\n" + "0\n" * volumes
    return {
        f"{stem}_{MODEL}_desc-denoised_bold.nii.gz": None,
        f"{stem}_{MODEL}_desc-brain_mask.nii.gz": None,
        f"{stem}_motion.tsv": rows.encode(),
        f"{stem}_outliers.tsv": rows.encode(),
    }


def lay_out_xcp_d(lay_out, files):
    contents = {name: content for name, content in files.items() if content is not None}
    return lay_out(*files, contents=contents, description=XCP_D)


def test_denoised_series_of_xcp_d_are_taken_with_a_notice(lay_out):
    found = find(lay_out_xcp_d(lay_out, xcp_d_files("sub-01_task-rest")))
    assert "denoised-source" in [notice.code for notice in found.runs[0].notices]
    assert found.runs[0].confounds.name == "sub-01_task-rest_motion.tsv"


def test_a_series_of_xcp_d_without_a_mask_is_its_own(lay_out):
    files = xcp_d_files("sub-01_task-rest")
    del files[f"sub-01/func/sub-01_task-rest_{MODEL}_desc-brain_mask.nii.gz"]
    run = find(lay_out_xcp_d(lay_out, files)).runs[0]
    assert run.mask == run.bold
    assert run.sources.count(run.bold) == 1
    assert "mask-from-series" in [notice.code for notice in run.notices]


@pytest.mark.parametrize("desc", ["denoisedSmoothed", "interpolated", "residual", "residualSmooth"])
def test_smoothed_and_interpolated_series_of_xcp_d_are_left(lay_out, desc):
    files = xcp_d_files("sub-01_task-rest")
    other = f"sub-01/func/sub-01_task-rest_{MODEL}_desc-{desc}_bold.nii.gz"
    dataset = lay_out_xcp_d(lay_out, {**files, other: None})
    assert "_desc-denoised_" in find(dataset).runs[0].bold.name
    (dataset / next(iter(files))).unlink()
    assert codes(find(dataset)) == ["no-space"]
    assert f"desc-{desc}" in find(dataset).refused[0].found
    named = find(dataset, filters={"desc": (desc,)})
    assert named.runs[0].relative(named.runs[0].bold) == other


def test_motion_is_read_unfiltered_where_xcp_d_wrote_both(lay_out):
    files = xcp_d_files("sub-01_task-rest")
    filtered = {"sub-01/func/sub-01_task-rest_desc-filtered_motion.tsv": b"x"}
    run = find(lay_out_xcp_d(lay_out, {**files, **filtered})).runs[0]
    assert run.confounds.name == "sub-01_task-rest_motion.tsv"


def test_a_censored_series_is_irregular(lay_out):
    dataset = lay_out_xcp_d(lay_out, xcp_d_files("sub-01_task-rest", volumes=5))
    assert codes(find(dataset)) == ["irregular-timing"]


def test_a_concatenation_is_left_out_where_its_parts_are_there(lay_out):
    parts = ["sub-01_task-rest_run-1", "sub-01_task-rest_run-2"]
    other = "sub-01_task-motor"
    files = {}
    for name in (*parts, "sub-01_task-rest", other):
        files |= xcp_d_files(name)
    assert names(find(lay_out_xcp_d(lay_out, files))) == [other, *parts]


def test_a_refused_run_does_not_stop_the_others(lay_out):
    dataset = lay_out(*run_files("sub-01_task-a"), *run_files("sub-01_task-b"))
    (dataset / next(run_files("sub-01_task-a"))).write_bytes(b"")
    found = find(dataset)
    assert (names(found), codes(found)) == (["sub-01_task-b"], ["unreadable"])
    assert found.refused[0].run == "sub-01_task-a"
    assert exit_code(found) == 65


def dangle(dataset, name):
    path = dataset / next(run_files(name))
    path.unlink()
    path.symlink_to("../../.git/annex/objects/X/key")


def test_without_any_content_the_input_is_missing(lay_out):
    dataset = lay_out(*run_files("sub-01_task-a"), *run_files("sub-01_task-b"))
    dangle(dataset, "sub-01_task-a")
    assert exit_code(find(dataset)) == 65
    dangle(dataset, "sub-01_task-b")
    assert exit_code(find(dataset)) == 66
    assert codes(find(dataset)) == ["missing-content"] * 2


@pytest.fixture
def close(monkeypatch):
    """Close a folder, even to root."""
    original = os.scandir

    def close(closed):
        def scandir(path):
            if os.fspath(path).endswith(closed):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return close


def test_a_closed_folder_refuses_its_participant_only(dataset, close):
    close("sub-01/ses-a/func")
    found = find(dataset)
    assert (names(found), codes(found)) == ([SOURCES[2]], ["denied"])
    assert (found.refused[0].run, found.refused[0].file) == ("sub-01", "sub-01/ses-a/func")


def test_a_closed_anatomy_refuses_the_runs_that_need_it(lay_out, close):
    dataset = lay_out(
        *run_files("sub-01_task-a"), *run_files("sub-01_task-b", "_space-T1w"), "sub-01/anat/x"
    )
    close("sub-01/anat")
    found = find(dataset)
    assert (names(found), codes(found)) == (["sub-01_task-a"], ["denied"])


def test_one_participant_is_found_as_in_the_whole(dataset):
    one = discover_participant(dataset, "sub-01", Select(), Prepare())
    assert list(one.runs) == [run for run in find(dataset).runs if run.participant == "01"]
    assert one.seen_bold


def test_a_participant_without_runs_is_an_empty_answer(dataset):
    found = discover_participant(dataset, "01", Select(tasks=("motor",)), Prepare())
    assert (found.runs, found.refused, exit_code(found)) == ((), (), 0)


def test_files_of_others_in_a_participants_folder_are_ignored(lay_out):
    stray = f"sub-01/func/sub-02_task-rest_{MODEL}_desc-preproc_bold.nii.gz"
    found = find(lay_out(*run_files("sub-01_task-rest"), stray))
    assert (names(found), found.refused) == (["sub-01_task-rest"], ())


def test_finding_runs_loads_no_heavy_library():
    code = (
        "import sys, slimbrain_app.bids.discover;"
        "heavy = {'torch', 'nibabel', 'bids', 'pandas', 'scipy', 'nipype', 'templateflow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


# What only the data can tell, and the preparation therefore says.
LATER = {"too-short", "bad-confounds", "empty-mask", "nan-volumes", "truncated"}
EDGES = Path(os.environ.get("SLIMBRAIN_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))


@pytest.mark.parametrize(
    "case", sorted(path.parent.name for path in EDGES.glob("edge/*/expected.json"))
)
def test_odd_inputs_end_as_expected(shared_data, tmp_path, case):
    dataset = shared_data / "edge" / case
    expected = json.loads((dataset / "expected.json").read_text())
    if (dataset / "make.py").exists():
        subprocess.run([sys.executable, dataset / "make.py", tmp_path / "made"], check=True)
        dataset = tmp_path / "made"
    assert {notice.code for notice in check_dataset(dataset)} <= {"known-fault"}
    if expected["reason"] == "no-bold":
        assert refusal_of(dataset).exit_code == expected["exit"]
        return
    found = find(dataset)
    if expected["reason"] in LATER | {None}:
        assert (codes(found), len(found.runs)) == ([], expected.get("runs", 1))
    else:
        assert (codes(found), exit_code(found)) == ([expected["reason"]], expected["exit"])
    if "tr" in expected:
        assert found.runs[0].repetition_time.seconds == expected["tr"]


@pytest.mark.parametrize(
    ("case", "notices"),
    [
        ("no-sidecar", ["tr-from-header"]),
        ("tr-disagrees", ["tr-disagrees"]),
        ("two-resolutions", ["several-grids"]),
        ("ras", []),
    ],
)
def test_odd_inputs_are_told(shared_data, case, notices):
    found = find(shared_data / "edge" / case)
    assert [notice.code for notice in found.runs[0].notices] == notices


def test_shared_examples_are_found_on_their_rungs(shared_data):
    like = find(shared_data / "fmriprep_like")
    assert [(run.rung, run.repetition_time.seconds) for run in like.runs] == [
        (0, 2.0),
        (0, 2.0),
        (0, 0.8),
    ]
    native = find(shared_data / "native")
    assert [(run.space, run.rung, len(run.transforms)) for run in native.runs] == [
        ("boldref", 1, 2),
        ("T1w", 2, 1),
    ]


def test_the_input_is_not_written_to(shared_data, tmp_path):
    dataset = shutil.copytree(shared_data / "native", tmp_path / "native")
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    find(dataset)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
