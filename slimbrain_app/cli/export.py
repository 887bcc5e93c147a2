"""``slimbrain-tools export``: a cohort for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.cli.arguments import Parser
from slimbrain_app.errors import worst

if TYPE_CHECKING:
    Actions = argparse._SubParsersAction[Parser]


def add_export(commands: Actions) -> None:
    parser = commands.add_parser("export", help="write a cohort for another program")
    formats = parser.add_subparsers(required=True, metavar="FORMAT", title="formats")
    brainmarks = formats.add_parser("brainmarks", help="a dataset of the suite Brainmarks")
    brainmarks.add_argument(
        "bids_dir", type=Path, metavar="BIDS_DIR", help="derivatives with runs in MNI152NLin6Asym"
    )
    brainmarks.add_argument("folder", type=Path, help="a new folder; its name is the dataset's")
    brainmarks.add_argument(
        "--outcome",
        required=True,
        metavar="COLUMN",
        help="what is to be told; numbers become three classes",
    )
    brainmarks.add_argument(
        "--phenotype",
        type=Path,
        metavar="TSV",
        help="another table of the participants (default: the dataset's participants.tsv)",
    )
    brainmarks.set_defaults(run=_export_brainmarks)


def _export_brainmarks(options: argparse.Namespace) -> int:
    from slimbrain_app.brainmarks.cohort import export_cohort
    from slimbrain_app.workflow.plan import check_folders

    check_folders(options.bids_dir, options.folder)
    written = export_cohort(
        options.bids_dir, options.folder, options.outcome, options.phenotype, print
    )
    for refusal in written.refused:
        print(f"{refusal.run} [{refusal.code}] {refusal.message}", file=sys.stderr)
    print(f"dataset {written.name}; to judge by it:")
    print(
        f"PYTHONPATH={options.folder} python -m brainmarks.main_logistic slimbrain_tiny cls "
        f"{written.name} --overrides device=cpu batch_size=1"
    )
    return worst(refusal.exit_code for refusal in written.refused)
