"""What the job may use: the limits of its cgroup or Slurm allocation, not those of the host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.settings import Compute, Pace

CGROUP = Path("/sys/fs/cgroup")
# In which of them this process is.
OWN = Path("/proc/self/cgroup")
MAX_THREADS = 4
# Processes that read windows for one that trains: more don't help, a step takes longer.
MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Processes at once, threads in each, and memory (GB) for all of them."""

    processes: int
    threads: int
    memory_gb: float


def find_limits(
    asked: Compute, environment: Mapping[str, str] = os.environ, cgroup: Path = CGROUP
) -> Limits:
    """Return the limits asked for, and the job's own for those that were not."""
    processes = asked.nprocs or count_processors(environment, cgroup)
    return Limits(
        processes=processes,
        threads=asked.omp_nthreads or min(processes, MAX_THREADS),
        memory_gb=asked.mem_gb or measure_memory(environment, cgroup),
    )


def share_limits(limits: Limits, environment: Mapping[str, str] = os.environ) -> Limits:
    """Return what is left for each of the processes that train on this node."""
    count = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    processes = max(1, limits.processes // count)
    return Limits(
        processes=processes,
        threads=min(limits.threads, processes),
        memory_gb=limits.memory_gb / count,
    )


def count_workers(pace: Pace, limits: Limits) -> int:
    """Return how many processes read windows: all processors but the one that trains."""
    if pace.workers is not None:
        return pace.workers
    return min(limits.processes - 1, MOST_WORKERS)


def count_threads(limits: Limits, workers: int) -> int:
    """Return how many threads train beside so many processes that read.

    No more than there are processors: threads that wait for their turn hold up all others.
    """
    return max(1, min(limits.threads, limits.processes - workers))


def count_processors(environment: Mapping[str, str], cgroup: Path) -> int:
    """Return the fewest of: the process's own processors, the cgroup's quota, Slurm's share."""
    return max(1, min(list_processors(environment, cgroup).values()))


def measure_memory(environment: Mapping[str, str], cgroup: Path) -> float:
    """Return the least of: the host's memory, the cgroup's limit, Slurm's share, in GB."""
    return min(list_memory(environment, cgroup).values())


def list_processors(
    environment: Mapping[str, str], cgroup: Path, own: Path = OWN
) -> dict[str, int]:
    """Return how many processors there are by each limit, and by the host."""
    counts = {"host": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts["affinity"] = len(os.sched_getaffinity(0))
    if (slurm := environment.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        counts["SLURM_CPUS_PER_TASK"] = int(slurm)
    quotas = {
        "cgroup v2": (_read_words(group / "cpu.max") for group in _climb(cgroup, own, "")),
        "cgroup v1": (
            _read_words(group / "cpu.cfs_quota_us") + _read_words(group / "cpu.cfs_period_us")
            for group in _climb(cgroup, own, "cpu")
        ),
    }
    for origin, pairs in quotas.items():
        shares = [int(pair[0]) // int(pair[1]) for pair in pairs if pair and pair[0].isdecimal()]
        if shares:
            counts[origin] = min(shares)
    return counts


def list_memory(environment: Mapping[str, str], cgroup: Path, own: Path = OWN) -> dict[str, float]:
    """Return how much memory there is by each limit, and by the host, in GB."""
    sizes = {"host": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    if (slurm := environment.get("SLURM_MEM_PER_NODE", "")).isdecimal():
        sizes["SLURM_MEM_PER_NODE"] = int(slurm) * 2**20
    shares = [environment.get(name, "") for name in ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")]
    if all(share.isdecimal() for share in shares):
        sizes["SLURM_MEM_PER_CPU"] = int(shares[0]) * int(shares[1]) * 2**20
    limits = {
        "cgroup v2": (_read_words(group / "memory.max") for group in _climb(cgroup, own, "")),
        "cgroup v1": (
            _read_words(group / "memory.limit_in_bytes") for group in _climb(cgroup, own, "memory")
        ),
    }
    for origin, found in limits.items():
        known = [int(words[0]) for words in found if words and words[0].isdecimal()]
        if known:
            sizes[origin] = min(known)
    return {origin: size / 1e9 for origin, size in sizes.items()}


def _climb(cgroup: Path, own: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the job's own group and of all above it: each of them limits it.

    Groups of the second generation have one tree, for which ``controller`` is empty.
    """
    top = cgroup / controller
    yield top
    for line in _read_words(own):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = top / path.lstrip("/")
            while group != top:
                yield group
                group = group.parent


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # Another generation of cgroups, or none: no limit from here.
