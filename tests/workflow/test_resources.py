from __future__ import annotations

import os

import pytest

from slimbrain_app.settings import Compute
from slimbrain_app.workflow.resources import (
    count_processors,
    find_limits,
    list_memory,
    list_processors,
    measure_memory,
)


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


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ("0::/slurm/job_7/step_0\n", ("", "cpu.max", "memory.max")),
        (
            "4:memory:/slurm/job_7/step_0\n2:cpu,cpuacct:/slurm/job_7/step_0\n0::/\n",
            ("", "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes"),
        ),
    ],
)
def test_a_limit_of_any_group_above_the_job_counts(tmp_path, own, names):
    (tmp_path / "own").write_text(own)
    _, quota, memory = names
    for name, text in ((quota, "100000 100000"), (memory, "5000000000")):
        place = tmp_path / "cgroup" / name
        inside = place.parent / "slurm/job_7" / place.name
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)
        (inside.parent / "step_0").mkdir(exist_ok=True)
        (inside.parent / "step_0" / place.name).write_text("max" if "max" in name else "-1")
    for period in (tmp_path / "cgroup").rglob("cpu.cfs_quota_us"):
        period.with_name("cpu.cfs_period_us").write_text("100000")
        period.write_text(period.read_text().split()[0])
    groups = {"cgroup": tmp_path / "cgroup", "own": tmp_path / "own"}
    assert min(list_processors({}, **groups).values()) == 1
    assert min(list_memory({}, **groups).values()) == 5.0


def test_slurm_memory_by_processor_counts(no_limits):
    environment = {"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "3"}
    assert measure_memory(environment, no_limits) == pytest.approx(300 * 2**20 / 1e9)


def test_what_is_asked_for_wins(no_limits):
    limits = find_limits(Compute(nprocs=7, omp_nthreads=3, mem_gb=2.5), {}, no_limits)
    assert (limits.processes, limits.threads, limits.memory_gb) == (7, 3, 2.5)


def test_threads_never_exceed_processes(no_limits):
    assert find_limits(Compute(nprocs=1), {}, no_limits).threads == 1
