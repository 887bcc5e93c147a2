from __future__ import annotations

import os

import pytest

from slimbrain_app.settings import Compute
from slimbrain_app.workflow.resources import count_processors, find_limits, measure_memory


@pytest.fixture
def no_limits(tmp_path):
    return tmp_path


def test_without_limits_the_machine_is_the_limit(no_limits):
    assert count_processors({}, no_limits) == len(os.sched_getaffinity(0))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert measure_memory({}, no_limits) == physical / 1e9


def test_slurm_share_counts(no_limits):
    environment = {"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "100"}
    assert count_processors(environment, no_limits) == 1
    assert measure_memory(environment, no_limits) == pytest.approx(100 * 2**20 / 1e9)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, len(os.sched_getaffinity(0))),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            len(os.sched_getaffinity(0)),
        ),
    ],
)
def test_processor_quota_of_both_generations_of_cgroups(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert count_processors({}, tmp_path) == expected


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_memory_limit_of_both_generations_of_cgroups(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1000000000\n")
    assert measure_memory({}, tmp_path) == 1.0


def test_what_is_asked_for_wins(no_limits):
    limits = find_limits(Compute(nprocs=7, omp_nthreads=3, mem_gb=2.5), {}, no_limits)
    assert (limits.processes, limits.threads, limits.memory_gb) == (7, 3, 2.5)


def test_threads_never_exceed_processes(no_limits):
    assert find_limits(Compute(nprocs=1), {}, no_limits).threads == 1
