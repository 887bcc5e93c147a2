"""Tests of what stands for locks where a file system has none, by real processes at once."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slimbrain_app import locks
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.files import lock

WITHOUT_LOCKS = Path(__file__).with_name("nolocks")
HOUR = 3600
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from slimbrain_app import locks
from slimbrain_app.errors import RunRefused
from slimbrain_app.files import lock
path, locks.BEAT_SECONDS, locks.SILENCE_SECONDS = Path(sys.argv[1]), *map(float, sys.argv[2:4])
"""
# As of another node, whose process ids say nothing here.
ELSEWHERE = "locks._name_node = lambda: 'another node'\n"
HOLD = """
with lock(path, "sub-01"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, errno.ENOSYS)


def fail(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silence be short: of this process, and of those that `start` starts."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.4)
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 2.0)


def start(code: str, path: Path) -> subprocess.Popen[str]:
    """Start Python code without locks."""
    pace = str(locks.BEAT_SECONDS), str(locks.SILENCE_SECONDS)
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, str(path), *pace],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(WITHOUT_LOCKS)},
    )


@contextmanager
def holder(path: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a lock until it is killed."""
    with start(before + HOLD, path) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def is_locked(path: Path) -> bool:
    try:
        with lock(path, "sub-01"):
            return False
    except RunRefused as error:
        assert (error.reason, error.exit_code) == ("locked", 75)
        return True


def list_held(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "held").iterdir())


def leave_dead(folder: Path, token: str, *names: str) -> None:
    """Leave what a process of another node leaves that was killed an hour ago."""
    beat = folder / f"held/{token}.beat"
    for name in names:
        (folder / "held" / name).mkdir(parents=True)
        (folder / "held" / name / f"{token}.0").touch()
    beat.write_text("node7\n4711\nanother node\n")
    os.utime(beat, (time.time() - HOUR,) * 2)


INCREMENT = """
for _ in range(int(sys.stdin.readline())):
    with lock(path, "the number", wait=True):
        number = int(path.with_name("number").read_text())
        time.sleep(0.005)
        path.with_name("new").write_text(str(number + 1))
        path.with_name("new").replace(path.with_name("number"))
"""
DIE = """
with lock(path, "the number", wait=True):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [0, 2])
def test_of_processes_that_count_by_turns_none_loses_a_number(tmp_path, quick, killed):
    """Though others are killed, on other nodes, while it is their turn."""
    (tmp_path / "number").write_text("0")
    counting = [start(INCREMENT, tmp_path / "a.lock") for _ in range(4)]
    dying = [start(ELSEWHERE + DIE, tmp_path / "a.lock") for _ in range(killed)]
    for process in counting:
        process.stdin.write("10\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in counting] == [0] * 4
    assert [process.wait(timeout=60) for process in dying] == [-signal.SIGKILL] * killed
    assert (tmp_path / "number").read_text() == "40"
    with lock(tmp_path / "a.lock", "the number", wait=True):
        pass
    assert list_held(tmp_path) == []
    for process in counting + dying:
        process.communicate()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_that_another_process_holds_is_refused_and_says_whose_it_is(
    tmp_path, monkeypatch, number
):
    fail(monkeypatch, number)
    path = tmp_path / "logs" / "sub-01.lock"
    with holder(path) as other:
        with pytest.raises(RunRefused) as refused, lock(path, "sub-01"):
            pytest.fail("two processes held the lock at once")
        assert other.poll() is None
    error = refused.value
    assert (error.reason, error.exit_code, error.file) == ("locked", 75, "sub-01")
    found = f"process {other.pid} on {platform.node()}, last heard of "
    assert error.found.startswith(found)
    assert "if it was killed, from " in error.advice


def test_a_lock_is_free_after_its_block_and_nothing_is_left_of_it(tmp_path):
    path = tmp_path / "sub-01.lock"
    with pytest.raises(ValueError, match="inside"), lock(path, "sub-01"):
        raise ValueError("inside")
    with lock(path, "sub-01"), lock(tmp_path / "sub-02.lock", "sub-02"):
        assert is_locked(path)
    assert not is_locked(path)
    assert list_held(tmp_path) == []


def test_a_killed_holder_of_this_node_holds_nothing(tmp_path):
    path = tmp_path / "sub-01.lock"
    with holder(path):
        assert is_locked(path)
    assert not is_locked(path)
    assert list_held(tmp_path) == []


def test_a_killed_holder_of_another_node_holds_its_lock_until_it_was_silent_for_long(
    tmp_path, quick, monkeypatch
):
    path = tmp_path / "sub-01.lock"
    with holder(path, ELSEWHERE) as other:
        pass
    assert other.wait() == -signal.SIGKILL
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 600)
    assert is_locked(path)
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 2)
    with lock(path, "sub-01", wait=True):
        pass
    assert list_held(tmp_path) == []


def test_a_holder_that_beats_is_never_taken_over(tmp_path, quick):
    path = tmp_path / "sub-01.lock"
    with holder(path, ELSEWHERE):
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert is_locked(path)


def test_wrong_clocks_do_not_make_a_holder_dead(tmp_path, quick, monkeypatch):
    path = tmp_path / "sub-01.lock"
    now = time.time
    monkeypatch.setattr(locks, "BEAT_SECONDS", 1.0)
    with holder(path, ELSEWHERE):
        for error in (HOUR, -HOUR):
            monkeypatch.setattr(time, "time", lambda error=error: now() + error)
            assert is_locked(path)
        # As where nodes stamp files by their own clocks, or a file server has stood still.
        (beat,) = (tmp_path / "held").glob("*.beat")
        os.utime(beat, (0, 0))
        assert is_locked(path)


TRY = """
from contextlib import ExitStack
for line in sys.stdin:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(Path(line.strip()), "sub-01"))
            print("won", flush=True)
        except RunRefused:
            print("refused", flush=True)
        sys.stdin.readline()
"""


def test_of_several_that_take_over_at_once_one_wins(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    processes = [start(TRY, tmp_path) for _ in range(4)]
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        leave_dead(folder, "f" * 32, "sub-01.lock")
        said = tell(processes, str(folder / "sub-01.lock"))
        assert sorted(said) == ["refused", "refused", "refused", "won"]
        for process in processes:
            process.stdin.write("\n")
    for process in processes:
        process.communicate()


def tell(processes: list[subprocess.Popen[str]], line: str) -> list[str]:
    for process in processes:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in processes]


def test_who_comes_late_to_a_dead_holder_removes_nothing_of_the_next(tmp_path, quick):
    """It was declared dead by two; one of them has taken its lock before the other clears up."""
    leave_dead(tmp_path, "f" * 32, "sub-01.lock")
    late = locks.Holder(tmp_path / "held")
    with lock(tmp_path / "sub-01.lock", "sub-01"):
        late._bury({"f" * 32})
        locks._clear(tmp_path / "held/sub-01.lock" / f"{'f' * 32}.0")
        assert is_locked(tmp_path / "sub-01.lock")


def test_what_the_dead_left_goes_though_nobody_asks_for_it(tmp_path, quick):
    leave_dead(tmp_path, "e" * 32, "sub-07.lock", "sub-08.lock", f".{'e' * 32}.1")
    (tmp_path / "held" / f".{'e' * 32}.2").mkdir()
    (tmp_path / "held/sub-09.lock").mkdir()
    with holder(tmp_path / "sub-03.lock", ELSEWHERE), lock(tmp_path / "sub-01.lock", "sub-01"):
        kept = list_held(tmp_path)
        assert kept[2:] == ["sub-01.lock", "sub-03.lock"]
        assert [name.endswith(".beat") for name in kept[:2]] == [True, True]


STAND_STILL = """
def end(*_):
    print("ended", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
"""


def test_a_holder_that_stood_still_is_told_to_end_when_it_goes_on(tmp_path, quick):
    path = tmp_path / "sub-01.lock"
    with holder(path, STAND_STILL) as other:
        other.send_signal(signal.SIGSTOP)
        with lock(path, "sub-01", wait=True):
            other.send_signal(signal.SIGCONT)
            assert other.stdout.readline() == "ended\n"
            assert other.wait(timeout=10) == 7
            assert is_locked(path)


def test_a_block_whose_lock_was_lost_does_not_end_well(tmp_path):
    with pytest.raises(RunRefused, match="locked"), lock(tmp_path / "sub-01.lock", "sub-01"):
        next((tmp_path / "held").glob("*.beat")).unlink()


FORK = """
with lock(path, "sub-01"):
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_forked_child_gives_nothing_back(tmp_path):
    path = tmp_path / "sub-01.lock"
    with start(FORK, path) as process:
        assert process.stdout.readline() == "held\n"
        assert is_locked(path)
        process.kill()


@pytest.mark.slow
def test_two_calls_on_one_output_write_what_one_writes_where_there_are_locks(simulated, tmp_path):
    called = [embed(simulated, tmp_path / "out", WITHOUT_LOCKS) for _ in range(2)]
    codes = sorted(process.wait(timeout=300) for process in called)
    assert codes in ([0, 0], [0, 75])
    assert embed(simulated, tmp_path / "with").wait(timeout=300) == 0
    assert list_held(tmp_path / "out/logs") == []
    assert read_lasting(tmp_path / "out") == read_lasting(tmp_path / "with")


def embed(dataset: Path, output: Path, *before: Path) -> subprocess.Popen[bytes]:
    words = ["participant", "--nprocs", "1", "--device", "cpu", "--windows", "1"]
    return subprocess.Popen(
        [Path(sys.executable).with_name("slimbrain"), dataset, output, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, before))},
    )


def read_lasting(output: Path) -> dict[str, bytes]:
    """Return all files but logs of calls; of those that tell times, only that they are there."""
    files = [path for path in output.rglob("*") if path.is_file()]
    timed = (".json", ".html")
    return {
        str(path.relative_to(output)): b"" if path.suffix in timed else path.read_bytes()
        for path in files
        if path.parent.parent.name != "logs"
    }


def test_a_file_in_the_way_is_not_writable(tmp_path):
    (tmp_path / "held").touch()
    with pytest.raises(CallRefused) as refused, lock(tmp_path / "sub-01.lock", "sub-01"):
        pytest.fail("nobody holds it")
    assert (refused.value.reason, refused.value.exit_code) == ("not-writable", 73)
