"""What the job may use: the limits of its cgroup or Slurm allocation, not those of the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.settings import Compute, Pace

CGROUP = Path("/sys/fs/cgroup")
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


def list_processors(environment: Mapping[str, str], cgroup: Path) -> dict[str, int]:
    """Return how many processors there are by each limit, and by the host."""
    counts = {"host": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts["affinity"] = len(os.sched_getaffinity(0))
    if (slurm := environment.get("SLURM_CPUS_PER_TASK", "")).isdecimal():
        counts["SLURM_CPUS_PER_TASK"] = int(slurm)
    quotas = {"cgroup v2": _read_quota(cgroup), "cgroup v1": _read_old_quota(cgroup)}
    for origin, (quota, period) in quotas.items():
        if quota.isdecimal():
            counts[origin] = int(quota) // int(period)
    return counts


def list_memory(environment: Mapping[str, str], cgroup: Path) -> dict[str, float]:
    """Return how much memory there is by each limit, and by the host, in GB."""
    sizes = {"host": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    if (slurm := environment.get("SLURM_MEM_PER_NODE", "")).isdecimal():
        sizes["SLURM_MEM_PER_NODE"] = int(slurm) * 2**20
    names = {"cgroup v2": "memory.max", "cgroup v1": "memory/memory.limit_in_bytes"}
    for origin, name in names.items():
        match _read_words(cgroup / name):
            case [size] if size.isdecimal():
                sizes[origin] = int(size)
    return {origin: size / 1e9 for origin, size in sizes.items()}


def _read_quota(cgroup: Path) -> tuple[str, str]:
    quota, period = _read_words(cgroup / "cpu.max") or ("max", "1")
    return quota, period


def _read_old_quota(cgroup: Path) -> tuple[str, str]:
    quota = _read_words(cgroup / "cpu/cpu.cfs_quota_us") or ["-1"]
    period = _read_words(cgroup / "cpu/cpu.cfs_period_us") or ["1"]
    return quota[0], period[0]


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []  # Another generation of cgroups, or none: no limit from here.
