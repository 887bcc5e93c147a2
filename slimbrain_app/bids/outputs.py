"""Outputs of runs and people: their names, their order of writing, whether they are up to date."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from slimbrain_app.bids.entities import build_name
from slimbrain_app.bids.sidecars import (
    ATTRIBUTION,
    MASK,
    Provenance,
    describe_call,
    describe_columns,
    describe_explanations,
    describe_run,
    inputs_agree,
)
from slimbrain_app.files import parse_json, sha256_of, whole_file, whole_folder, write_json
from slimbrain_app.records import (
    Contract,
    Embedding,
    Explanation,
    Flag,
    ParcelShare,
    Prediction,
    PreparedRun,
    RankedRun,
    Run,
    WindowShare,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

# What explains a run: its map and parcels, and its windows.
_EXPLAINING = ("attribution", "contributions")


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
    explanations: Sequence[Explanation] = (),
) -> tuple[str, ...]:
    """Write all that is kept of a run: its data, then the JSONs, the one that tells last.

    Parameters
    ----------
    mask : ndarray, bool, shape of the model grid
        The voxels that were encoded.
    predictions : sequence of Prediction
        Without any, those of an earlier call are removed.
    explanations : sequence of Explanation
        So, too; their values are of the mask's voxels in C order.

    Returns
    -------
    tuple of str
        Every file written, below ``output``.
    """
    import numpy as np

    contract = provenance.model.contract
    content: dict[str, Mapping[str, Any]] = {}
    image = name_output(run, contract, "mask", ".nii.gz")
    _write_image(output / image, mask.astype(np.uint8), contract)
    content[image] = MASK
    if provenance.settings.output.save_prepared:
        _copy_folder(prepared.folder, output / name_output(run, contract, "prepared", ""))
    if not predictions:
        _remove_table(output, name_output(run, contract, "predictions", ".tsv"))
    if embedding.covariance is None:
        _remove_table(output, name_output(run, contract, "embeddings", ".tsv", stat="covariance"))
    content |= _write_explanations(output, run, mask, explanations, provenance)
    for name, table in _tabulate(run, ranked, embedding, predictions, provenance):
        write_table(output / name, table)
        content[name] = describe_columns(table.columns, provenance.model.heads)

    facts = describe_run(run, prepared, ranked, embedding, provenance)
    *others, last = content
    for name in others:
        write_json(output / _json_of(name), {**content[name], **facts})
    written = (*content, *dict.fromkeys(_json_of(name) for name in others))
    checksums = {name: sha256_of(output / name) for name in written}
    write_json(output / _json_of(last), {**content[last], **facts, "Outputs": checksums})
    return (*written, _json_of(last))


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


def read_views(output: Path, run: Run, contract: Contract) -> NDArray[np.float32]:
    """Return the embeddings of a run's views, (views, width), from their table."""
    import numpy as np
    import pandas as pd

    table = pd.read_csv(output / name_output(run, contract, "embeddings", ".tsv"), sep="\t")
    return table.filter(regex=r"^e\d+$").to_numpy(np.float32)


def read_covariance(output: Path, run: Run, contract: Contract) -> NDArray[np.float32] | None:
    """Return which places of a run move together, (width,), from its table; None without one."""
    import numpy as np
    import pandas as pd

    name = name_output(run, contract, "embeddings", ".tsv", stat="covariance")
    if not (output / name).exists():
        return None
    row: NDArray[np.float32] = pd.read_csv(output / name, sep="\t").to_numpy(np.float32)[0]
    return row


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Return what was predicted, from its table."""
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(map(_restore_prediction, csv.DictReader(stream, delimiter="\t")))


def read_explanations(output: Path, run: Run, contract: Contract) -> tuple[Explanation, ...]:
    """Return what an earlier call wrote to explain a run, without its maps; nothing if none."""
    import pandas as pd

    names = [name_output(run, contract, suffix, ".tsv") for suffix in _EXPLAINING]
    if not (output / names[0]).exists():
        return ()
    parcels, windows = (
        pd.read_csv(
            output / name,
            sep="\t",
            dtype={"outcome": str, "level": str},
            keep_default_na=False,
            na_values={"network": "n/a"},
        )
        for name in names
    )
    told = parse_json((output / _json_of(names[0])).read_bytes())["Maps"]
    return tuple(
        Explanation(
            outcome=one["Outcome"],
            level=one["Level"],
            units=one["Units"],
            output=one["Output"],
            baseline=one["Baseline"],
            gap=one["Gap"],
            points=one["Points"],
            pooling=one["Pooling"],
            parcels=tuple(ParcelShare(**row) for row in _pick_rows(parcels, one)),
            windows=tuple(WindowShare(**row) for row in _pick_rows(windows, one)),
        )
        for one in told
    )


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
    except (KeyError, TypeError, AttributeError):
        return False  # Written by a version that said less, or damaged.


def is_by_model(facts: Mapping[str, Any], provenance: Provenance) -> bool:
    """Whether a run's sidecar names the weights of this call."""
    by_model: bool = facts.get("Model", {}).get("SHA256") == provenance.model.sha256
    return by_model


def read_facts(output: Path, run: Run, contract: Contract) -> dict[str, Any]:
    """Return the sidecar by which a run counts as done, or nothing where it isn't there."""
    last = output / name_output(run, contract, "embeddings", ".json", stat="mean")
    try:
        facts = parse_json(last.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _write_explanations(
    output: Path,
    run: Run,
    mask: NDArray[np.bool_],
    explanations: Sequence[Explanation],
    provenance: Provenance,
) -> dict[str, Mapping[str, Any]]:
    """Write maps and tables; return what their JSONs, of which two are one, say."""
    import numpy as np
    import pandas as pd

    contract = provenance.model.contract
    image = name_output(run, contract, _EXPLAINING[0], ".nii.gz")
    names = [name_output(run, contract, suffix, ".tsv") for suffix in _EXPLAINING]
    if not explanations:
        for name in (image, *names):
            _remove_table(output, name)
        return {}
    maps = np.zeros((*mask.shape, len(explanations)), np.float32)
    maps[mask] = np.transpose([one.values for one in explanations])
    _write_image(output / image, maps, contract)
    content: dict[str, Mapping[str, Any]] = {}
    for name, part in zip(names, ("parcels", "windows"), strict=True):
        table = pd.DataFrame(
            {"outcome": one.outcome, "level": one.level, **asdict(row)}
            for one in explanations
            for row in getattr(one, part)
        )
        write_table(output / name, table)
        content[name] = describe_columns(table.columns, provenance.model.heads)
    told = describe_explanations(explanations)
    shared = {**ATTRIBUTION, **content[names[0]], **told}
    return {image: shared, names[0]: shared, names[1]: {**content[names[1]], **told}}


def _pick_rows(table: pd.DataFrame, told: Mapping[str, Any]) -> list[Any]:
    """Return the rows of one output, without what says so."""
    level = told["Level"] or "n/a"
    rows = table[(table["outcome"] == told["Outcome"]) & (table["level"] == level)]
    rows = rows.drop(columns=["outcome", "level"]).astype(object)
    records: list[Any] = rows.where(rows.notna(), None).to_dict("records")
    return records


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
    if _wants_views(provenance):
        views = pd.DataFrame(embedding.views.astype(np.float64), columns=names)
        views.insert(0, "window", embedding.windows)
        views.insert(1, "view", views.groupby("window").cumcount())
        views.insert(2, "onset", embedding.onsets)
        views.insert(3, "duration", contract.window_seconds)
        yield name_output(run, contract, "embeddings", ".tsv"), views

    if predictions:
        yield name_output(run, contract, "predictions", ".tsv"), _tabulate_predictions(predictions)

    if embedding.covariance is not None:
        columns = [f"c{i:04d}" for i in range(embedding.covariance.size)]
        row = pd.DataFrame(embedding.covariance.astype(np.float64)[None], columns=columns)
        yield name_output(run, contract, "embeddings", ".tsv", stat="covariance"), row

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


def _write_image(
    path: Path, values: NDArray[np.uint8] | NDArray[np.float32], contract: Contract
) -> None:
    """Write one volume or several on the model grid."""
    import nibabel as nib
    import numpy as np

    affine = np.diag([contract.voxel_size] * 3 + [1.0])
    affine[:3, 3] = contract.origin
    image = nib.Nifti1Image(values, affine)
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _has_extras(output: Path, run: Run, provenance: Provenance) -> bool:
    contract, wanted = provenance.model.contract, provenance.settings.output
    views = output / name_output(run, contract, "embeddings", ".tsv")
    prepared = output / name_output(run, contract, "prepared", "")
    attribution = output / name_output(run, contract, _EXPLAINING[0], ".nii.gz")
    return (
        (not _wants_views(provenance) or views.exists())
        and (not wanted.save_prepared or prepared.is_dir())
        and (not wanted.attribution or attribution.exists())
    )


def _wants_views(provenance: Provenance) -> bool:
    return provenance.settings.output.save_views or provenance.model.reads_views


def _json_of(name: str) -> str:
    return f"{name.removesuffix('.nii.gz').removesuffix('.tsv')}.json"
