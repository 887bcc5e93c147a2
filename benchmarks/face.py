"""What ``slimbrain_app.load().embed()`` takes from a cold start, beside the command line's share.

Simulates a person, then in turn embeds the run by a fresh Python process and by the real command
in one process, each several times. The command's share is its whole time without its steps of
writing and reporting. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slimbrain_app.simulation import SimulationSettings, simulate_dataset

FACE = "import sys, slimbrain_app; slimbrain_app.load('tiny').embed(sys.argv[1])"
IMPORT = "import time; t = time.time(); import slimbrain_app; print(time.time() - t)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--voxel-size", type=float, default=2.0, help="mm")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    settings = SimulationSettings(
        participants=1, volumes=options.volumes, voxel_size=options.voxel_size
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset, output = Path(folder) / "fmriprep", Path(folder) / "out"
        simulate_dataset(dataset, settings)
        (bold,) = dataset.glob("sub-01/func/*_desc-preproc_bold.nii.gz")
        imports, faces, shares = [], [], []
        for _ in range(options.repeats):
            told = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True)
            imports.append(float(told.stdout))
            faces.append(measure([sys.executable, "-W", "ignore", "-c", FACE, bold]))
            words = f"-m slimbrain_app {dataset} {output} participant --nprocs 1 -q"
            whole = measure([sys.executable, *words.split()])
            shares.append(whole - count_writing(output))
            shutil.rmtree(output)
    face, share = statistics.median(faces), statistics.median(shares)
    print(f"import slimbrain_app     {statistics.median(imports):7.4f} s")
    print(f"load and embed           {face:7.2f} s ({min(faces):.2f} to {max(faces):.2f})")
    print(f"command line's share     {share:7.2f} s ({min(shares):.2f} to {max(shares):.2f})")
    print(f"ratio                    {face / share:7.2f}")


def measure(command: list[str | Path]) -> float:
    start = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def count_writing(output: Path) -> float:
    """Return the seconds that the command spent on writing, from its status file."""
    (person,) = json.loads((output / "logs/status.json").read_text())
    (run,) = person["runs"]
    seconds: float = sum(run["seconds"][step] for step in run["seconds"] if step == "write")
    return seconds


if __name__ == "__main__":
    main()
