r"""Embeddings of prepared runs by one model, as a table for ``benchmarks/probe.py``.

Where people are simulated, or have been prepared, this spares the way through NIfTI files. Windows
are evenly spaced, for all models alike.

::

    slimbrain-tools simulate cohort --prepared --roi-timeseries ... --atlas ... --phenotype ...
    python benchmarks/embed.py cohort tiny tiny.tsv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbrain_app.embedding import embed_run
from slimbrain_app.model.packages import load_package
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.ranking import rank_run
from slimbrain_app.settings import Encode, Rank

RUNS = "sub-*/**/*_desc-slimbrain_prepared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path, help="folder with prepared runs")
    parser.add_argument("model", help="name or folder of a package")
    parser.add_argument("table", type=Path, metavar="TSV", help="to be written")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    package = load_package(options.model)
    rank = Rank(mode="uniform", windows=options.windows)
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for folder in sorted(options.cohort.glob(RUNS)):
        prepared = load_prepared(folder)
        ranked = rank_run(prepared, package.contract, None, rank, 0, folder.name)
        embedding = embed_run(prepared, ranked, package, Encode(), options.device)
        participant = folder.relative_to(options.cohort).parts[0]
        rows.setdefault(participant, []).append(embedding.mean.astype(np.float64))
    table = pd.DataFrame({name: np.mean(runs, axis=0) for name, runs in rows.items()}).T
    table.columns = pd.Index([f"e{column:04d}" for column in range(table.shape[1])])
    table.rename_axis("participant_id").to_csv(options.table, sep="\t", float_format="%.9g")


if __name__ == "__main__":
    main()
