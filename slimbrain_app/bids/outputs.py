"""Outputs of runs and people: their names, their order of writing, whether they are up to date."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from slimbrain_app.bids.entities import build_name
from slimbrain_app.bids.sidecars import (
    MASK,
    Provenance,
    describe_call,
    describe_columns,
    describe_run,
    inputs_agree,
)
from slimbrain_app.files import sha256_of, whole_file, whole_folder, write_json
from slimbrain_app.records import (
    Contract,
    Embedding,
    Flag,
    Prediction,
    PreparedRun,
    RankedRun,
    Run,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def name_output(run: Run, contract: Contract, suffix: str, extension: str, stat: str = "") -> str:
    """Return an output's path below the output folder, with slashes."""
    extra = (("space", contract.space), ("stat", stat), ("desc", "slimbrain"))
    entities = (*run.entities, *(pair for pair in extra if pair[1]))
    session = f"/ses-{run.session}" if run.session else ""
    return f"sub-{run.participant}{session}/func/{build_name(entities, suffix, extension)}"


def name_person_output(participant: str, suffix: str, extension: str) -> str:
    """Return the path below the output folder of what is said of a person, not of a run."""
    entities = (("sub", participant), ("desc", "slimbrain"))
    return f"sub-{participant}/{build_name(entities, suffix, extension)}"


def write_run(
    output: Path,
    run: Run,
    prepared: PreparedRun,
    ranked: RankedRun,
    embedding: Embedding,
    mask: NDArray[np.bool_],
    provenance: Provenance,
    predictions: Sequence[Prediction] = (),
) -> tuple[str, ...]:
    """Write all that is kept of a run: its data, then the JSONs, the one that tells last.

    Parameters
    ----------
    mask : ndarray, bool, shape of the model grid
        The voxels that were encoded.
    predictions : sequence of Prediction
        Without any, those of an earlier call are removed.

    Returns
    -------
    tuple of str
        Every file written, below ``output``.
    """
    contract = provenance.model.contract
    content: dict[str, Mapping[str, Any]] = {}
    image = name_output(run, contract, "mask", ".nii.gz")
    _write_mask(output / image, mask, contract)
    content[image] = MASK
    if provenance.settings.output.save_prepared:
        _copy_folder(prepared.folder, output / name_output(run, contract, "prepared", ""))
    if not predictions:
        _remove_table(output, name_output(run, contract, "predictions", ".tsv"))
    for name, table in _tabulate(run, ranked, embedding, predictions, provenance):
        write_table(output / name, table)
        content[name] = describe_columns(table.columns, provenance.model.heads)

    facts = describe_run(run, prepared, ranked, embedding, provenance)
    *others, last = content
    for name in others:
        write_json(output / _json_of(name), {**content[name], **facts})
    checksums = {name: sha256_of(output / name) for name in content}
    write_json(output / _json_of(last), {**content[last], **facts, "Outputs": checksums})
    return (*content, *(_json_of(name) for name in content))


def write_person(
    output: Path,
    participant: str,
    runs: Sequence[Run],
    predictions: Sequence[Prediction],
    provenance: Provenance,
) -> None:
    """Write what is predicted of a person from the mean embedding of runs, then its JSON.

    Without predictions, those of an earlier call are removed.
    """
    name = name_person_output(participant, "predictions", ".tsv")
    if not predictions:
        _remove_table(output, name)
        return
    table, contract = _tabulate_predictions(predictions), provenance.model.contract
    write_table(output / name, table)
    sources = [name_output(run, contract, "embeddings", ".tsv", stat="mean") for run in runs]
    facts = {
        **describe_columns(table.columns, provenance.model.heads),
        "Sources": [f"bids::{source}" for source in sources],
        "Runs": [run.name for run in runs],
        **describe_call(provenance),
    }
    write_json(output / _json_of(name), facts)


def has_person(output: Path, participant: str) -> bool:
    """Whether `write_person` has written predictions to the end."""
    return (output / name_person_output(participant, "predictions", ".json")).exists()


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Return what was predicted, from its table."""
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(map(_restore_prediction, csv.DictReader(stream, delimiter="\t")))


def is_whole(output: Path, run: Run, contract: Contract) -> bool:
    """Whether an earlier call wrote ``run`` to the end, and nothing has changed it since."""
    return _outputs_agree(output, read_facts(output, run, contract))


def is_current(output: Path, run: Run, provenance: Provenance) -> bool:
    """Whether an earlier call wrote ``run`` from the same inputs, settings and model."""
    facts = read_facts(output, run, provenance.model.contract)
    try:
        return (
            bool(facts)
            and facts["SettingsFingerprint"] == provenance.settings.fingerprint()
            and is_by_model(facts, provenance)
            and inputs_agree(run, facts["InputChecksums"])
            and _has_extras(output, run, provenance)
            and _outputs_agree(output, facts)
        )
    except (KeyError, TypeError):
        return False  # Written by a version that said less.


def is_by_model(facts: Mapping[str, Any], provenance: Provenance) -> bool:
    """Whether a run's sidecar names the weights of this call."""
    by_model: bool = facts["Model"]["SHA256"] == provenance.model.sha256
    return by_model


def read_facts(output: Path, run: Run, contract: Contract) -> dict[str, Any]:
    """Return the sidecar by which a run counts as done, or nothing where it isn't there."""
    last = output / name_output(run, contract, "embeddings", ".json", stat="mean")
    try:
        facts = json.loads(last.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _tabulate(
    run: Run,
    ranked: RankedRun,
    embedding: Embedding,
    predictions: Sequence[Prediction],
    provenance: Provenance,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield names and tables; the last is the run's embedding, by which the run counts as done."""
    import numpy as np
    import pandas as pd

    contract = provenance.model.contract
    windows = pd.DataFrame([asdict(window) for window in ranked.windows]).drop(columns="start")
    windows["selected"] = windows["selected"].map({True: "true", False: "false"})
    yield name_output(run, contract, "windows", ".tsv"), windows

    names = [f"e{i:04d}" for i in range(embedding.mean.size)]
    if provenance.settings.output.save_views:
        views = pd.DataFrame(embedding.views.astype(np.float64), columns=names)
        views.insert(0, "window", embedding.windows)
        views.insert(1, "view", views.groupby("window").cumcount())
        views.insert(2, "onset", embedding.onsets)
        views.insert(3, "duration", contract.window_seconds)
        yield name_output(run, contract, "embeddings", ".tsv"), views

    if predictions:
        yield name_output(run, contract, "predictions", ".tsv"), _tabulate_predictions(predictions)

    mean = pd.DataFrame(embedding.mean.astype(np.float64)[None], columns=names)
    yield name_output(run, contract, "embeddings", ".tsv", stat="mean"), mean


def _tabulate_predictions(predictions: Sequence[Prediction]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([asdict(prediction) for prediction in predictions])
    numbers = ["value", "lower", "upper", "percentile"]
    table[numbers] = table[numbers].astype(float)
    table["calibrated"] = table["calibrated"].map({True: "yes", False: "no"})
    table["flag"] = [",".join(flags) or None for flags in table.pop("flags")]
    return table


def _restore_prediction(row: Mapping[str, str]) -> Prediction:
    known = {name: None if cell == "n/a" else cell for name, cell in row.items()}
    numbers = {
        name: None if known[name] is None else float(row[name])
        for name in ("lower", "upper", "percentile")
    }
    flags = cast("list[Flag]", row["flag"].split(",")) if known["flag"] else []
    return Prediction(
        outcome=row["outcome"],
        level=known["level"],
        value=float(row["value"]),
        calibrated=row["calibrated"] == "yes",
        flags=tuple(flags),
        **numbers,
    )


def _remove_table(output: Path, name: str) -> None:
    for part in (_json_of(name), name):
        (output / part).unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as all of ours are: tabs, ``n/a``, nine significant digits."""
    # Nine significant digits bring every float32 back to the last bit.
    with whole_file(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.9g", na_rep="n/a")


def _write_mask(path: Path, mask: NDArray[np.bool_], contract: Contract) -> None:
    import nibabel as nib
    import numpy as np

    affine = np.diag([contract.voxel_size] * 3 + [1.0])
    affine[:3, 3] = contract.origin
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:
        nib.save(image, temporary)


def _copy_folder(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as temporary:
        for file in source.iterdir():
            shutil.copyfile(file, temporary / file.name)


def _outputs_agree(output: Path, facts: Mapping[str, Any]) -> bool:
    try:
        return bool(facts) and all(
            sha256_of(output / name) == digest for name, digest in facts["Outputs"].items()
        )
    except (OSError, KeyError, AttributeError):
        return False


def _has_extras(output: Path, run: Run, provenance: Provenance) -> bool:
    contract, wanted = provenance.model.contract, provenance.settings.output
    views = output / name_output(run, contract, "embeddings", ".tsv")
    prepared = output / name_output(run, contract, "prepared", "")
    return (not wanted.save_views or views.exists()) and (
        not wanted.save_prepared or prepared.is_dir()
    )


def _json_of(name: str) -> str:
    return f"{name.removesuffix('.nii.gz').removesuffix('.tsv')}.json"
