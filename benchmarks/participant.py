"""Where the time of ``slimbrain ... participant`` goes, stage by stage.

Simulates people, runs the real command on them in one process, and prints each stage's share of the
command's whole time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SLIMBRAIN = Path(sys.executable).with_name("slimbrain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--participants", type=int, default=2)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--voxel-size", type=float, default=2.0, help="mm")
    parser.add_argument("--model", default="tiny", help="name or folder of a package")
    options = parser.parse_args()
    settings = SimulationSettings(
        participants=options.participants, volumes=options.volumes, voxel_size=options.voxel_size
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset, output = Path(folder) / "fmriprep", Path(folder) / "out"
        simulate_dataset(dataset, settings)
        first = time_command(dataset, output, options.model)
        print_shares(first, sum_steps(output))
        second = time_command(dataset, output, options.model)
        print(f"the same call again: {second:.1f} s, {second / first:.2f} of the first")


def time_command(dataset: Path, output: Path, model: str) -> float:
    command = [SLIMBRAIN, dataset, output, "participant", "--nprocs", "1", "-q", "--model", model]
    start = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def sum_steps(output: Path) -> Counter[str]:
    """Return seconds by step over all runs, from the status file."""
    total: Counter[str] = Counter()
    for person in json.loads((output / "logs/status.json").read_text()):
        for run in person["runs"]:
            total.update(run["seconds"])
    return total


def print_shares(whole: float, steps: Counter[str]) -> None:
    rest = whole - steps.total()
    for step, seconds in [*steps.items(), ("start, graph, reports", rest), ("whole", whole)]:
        print(f"{step:24s} {seconds:7.1f} s {seconds / whole:6.1%}")


if __name__ == "__main__":
    main()
