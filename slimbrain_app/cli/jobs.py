"""What all jobs of ``slimbrain-tools slurm`` have in common: their arguments, and their command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slimbrain_app.cli.arguments import WRITTEN, Parser, slurm_name, slurm_time


def add_call(parser: Parser) -> None:
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="as for slimbrain")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="as for slimbrain")
    parser.add_argument(
        "--image", type=Path, metavar="SIF", help="run in this Apptainer image (default: none)"
    )


def add_limits(group: argparse._ActionsContainer, whose: str) -> None:
    group.add_argument(
        "--time",
        type=slurm_time,
        required=True,
        metavar="HH:MM:SS",
        help=f"limit of a {whose}, in any of Slurm's spellings",
    )
    group.add_argument(
        "--partition", type=slurm_name, metavar="NAME", help="partition (default: the cluster's)"
    )
    group.add_argument(
        "--account", type=slurm_name, metavar="NAME", help="account (default: the cluster's)"
    )


def make_command(
    image: Path | None,
    words: Sequence[str],
    *,
    gpu: bool,
    network: bool = False,
    read: Sequence[Path] = (),
) -> tuple[list[str], list[Path]]:
    """Return what calls slimbrain, in the image if there is one, and which folders it writes.

    Parameters
    ----------
    image : Path or None
    words : sequence of str
        The call's, with paths from here.
    gpu, network : bool
        What an image has.
    read : sequence of Path
        What is read but not named by the words, whole.

    Raises
    ------
    CallRefused
        What the call itself would raise for its options; ``usage`` if a file that it names is not
        there.
    """
    from slimbrain_app.cli.app import read_options
    from slimbrain_app.cli.container import gather, read_configured, rewrite
    from slimbrain_app.cluster.containers import Container, enter

    call = read_options(words)  # Better refused now than when a job has waited its turn.
    if image is None:
        # Without the links' ends: they may lie elsewhere on each node.
        told = list(rewrite(words, Path.absolute))
        made = [path for option, _, paths in told if option in WRITTEN for path in paths]
        return ["slimbrain", *(word for _, spelt, _ in told for word in spelt)], made
    entry = gather(call, words, read_configured(call))
    container = Container(engine="apptainer", image=str(image.absolute()), gpu=gpu, network=network)
    spelt = [word for option in entry.words for word in option]
    return enter(container, spelt, [*entry.read, *read], entry.made, entry.variables), entry.made
