"""Tests of whole files, locks and what killed processes leave."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.files import (
    TEMPORARY,
    lock,
    remove_leftovers,
    sha256_of,
    whole_file,
    whole_folder,
    write_json,
    write_text,
    writing,
)

Writer = Callable[[Path], AbstractContextManager[Path]]


@contextmanager
def other_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python code beside this process, from when it says ready until it is killed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of 64 KiB, where this process may."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size=64k,{options}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only the administrator of a machine can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_written_beside_its_place_and_then_takes_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "sub-01_bold.nii.gz"
    with whole_file(target) as temporary:
        temporary.write_text("content")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith("_bold.nii.gz")
    assert target.read_text() == "content"
    assert list_names(target.parent) == [target.name]


def test_folder_is_written_beside_its_place_and_then_takes_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with whole_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("content")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "content"
    assert list_names(target.parent) == [target.name]


def test_folder_replaces_the_old_one_altogether(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("old", "new"):
        with whole_folder(target) as temporary:
            (temporary / name).touch()
    assert list_names(target) == ["new"]
    assert list_names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(errno.EIO, "broken")])
def test_failed_file_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "table.tsv"
    target.write_text("old")
    with pytest.raises(error if isinstance(error, type) else OSError), whole_file(target) as new:
        new.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list_names(tmp_path) == ["table.tsv"]


def test_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ValueError, match="half way"), whole_folder(target) as new:
        (new / "half").touch()
        raise ValueError("half way")
    assert list_names(target) == ["old"]
    assert list_names(tmp_path) == ["model"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_where_no_folder_can_be_made_nothing_can_be_written() -> None:
    with pytest.raises(CallRefused, match="not-writable"):
        write_text(Path("/proc/slimbrain/table.tsv"), "")


def test_block_that_writes_nothing_does_not_replace(tmp_path: Path) -> None:
    target = tmp_path / "table.tsv"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), whole_file(target):
        pass
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)]
)
def test_modes_follow_the_umask(
    tmp_path: Path, mask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "group" / "file", "content")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "group" / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode
    assert stat.S_IMODE((tmp_path / "group").stat().st_mode) == folder_mode


WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from slimbrain_app.files import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("old", ["old", None])
def test_kill_leaves_the_old_file_and_a_leftover_that_can_be_removed(
    tmp_path: Path, old: str | None
) -> None:
    target = tmp_path / "table.tsv"
    if old is not None:
        target.write_text(old)
    with other_process(WRITE_AND_HANG, target):
        pass
    assert (target.read_text() if target.exists() else None) == old
    assert len(list_names(tmp_path)) == (1 if old is None else 2)
    remove_leftovers(tmp_path)
    assert list_names(tmp_path) == ([] if old is None else ["table.tsv"])


WRITE_FOREVER = """
import sys
import threading
from pathlib import Path
from slimbrain_app.files import write_text
target, letter = Path(sys.argv[1]), sys.argv[2]
write_text(target, letter * 300_000)
print("ready", flush=True)
while True:
    write_text(target, letter * 300_000)
"""


def test_reader_never_sees_half_a_file_though_two_write_it_and_are_killed(tmp_path: Path) -> None:
    target = tmp_path / "table.tsv"
    seen = set()
    with other_process(WRITE_FOREVER, target, "a"), other_process(WRITE_FOREVER, target, "b"):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            seen.add(target.read_text())
    seen.add(target.read_text())
    assert seen <= {"a" * 300_000, "b" * 300_000}
    remove_leftovers(tmp_path)
    assert list_names(tmp_path) == ["table.tsv"]


FOLDER_AND_HANG = WRITE_AND_HANG.replace("whole_file", "whole_folder").replace(
    "temporary.write", "(temporary / 'file').write"
)


def test_kill_leaves_the_old_folder_and_a_leftover_that_can_be_removed(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with other_process(FOLDER_AND_HANG, target):
        pass
    assert list_names(target) == []
    assert len(list_names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert list_names(tmp_path) == ["model"]


def test_removing_leftovers_touches_nothing_else(tmp_path: Path) -> None:
    for name in (".hidden", "slimbrain-1", "sub-01.slimbrain-1"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert list_names(tmp_path) == [".hidden", "slimbrain-1", "sub-01.slimbrain-1"]
    remove_leftovers(tmp_path / "absent")


def test_leftover_that_may_not_be_removed_is_not_writable(tmp_path: Path, monkeypatch) -> None:
    leftover = tmp_path / f"{TEMPORARY}1-sub-01.html"
    leftover.touch()

    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(CallRefused) as refused:
        remove_leftovers(tmp_path)
    assert (refused.value.reason, refused.value.file) == ("not-writable", str(leftover))


def test_leftovers_of_one_name_go_and_those_of_others_stay(tmp_path: Path) -> None:
    for name in ("sub-1.html", "sub-11.html"):
        with other_process(WRITE_AND_HANG, tmp_path / name):
            pass
    remove_leftovers(tmp_path, "sub-1.html")
    assert [name.endswith("-sub-11.html") for name in list_names(tmp_path)] == [True]


@pytest.mark.parametrize("write", [whole_file, whole_folder])
@pytest.mark.parametrize("depth", ["", "deeper", "deeper/still"])
def test_file_in_place_of_the_folder_is_not_writable(
    tmp_path: Path, write: Writer, depth: str
) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(CallRefused) as refused, write(tmp_path / "out" / depth / "file"):
        pass
    assert refused.value.reason == "not-writable"
    assert refused.value.file == str(tmp_path / "out" / depth / "file")


def test_folder_in_place_of_the_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").mkdir()
    with pytest.raises(CallRefused) as refused:
        write_text(tmp_path / "table.tsv", "content")
    assert refused.value.reason == "not-writable"
    assert list_names(tmp_path) == ["table.tsv"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the administrator")
@pytest.mark.parametrize("write", [whole_file, whole_folder, lambda path: lock(path, "sub-01")])
def test_folder_without_permission_is_not_writable(tmp_path: Path, write: Writer) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(CallRefused) as refused, write(tmp_path / "file") as temporary:
        temporary.touch()
    assert refused.value.reason == "not-writable"
    assert refused.value.exit_code == 73


@pytest.mark.parametrize("write", [whole_file, whole_folder, lambda path: lock(path, "sub-01")])
def test_read_only_file_system_is_not_writable(tmp_path: Path, write: Writer) -> None:
    with (
        small_disk(tmp_path / "disk", "ro") as disk,
        pytest.raises(CallRefused) as refused,
        write(disk / "file") as temporary,
    ):
        temporary.touch()
    assert refused.value.reason == "not-writable"


def test_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "rw") as disk:
        write_text(disk / "table.tsv", "old")
        with pytest.raises(CallRefused) as refused:
            write_text(disk / "table.tsv", "new" * 100_000)
        assert refused.value.reason == "disk-full"
        assert (disk / "table.tsv").read_text() == "old"
        assert list_names(disk) == ["table.tsv"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EROFS, "not-writable"),
        (errno.EACCES, "not-writable"),
    ],
)
@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_failing_writes_are_said_by_their_cause(
    tmp_path: Path, write: Writer, number: int, reason: str
) -> None:
    with pytest.raises(CallRefused) as refused, write(tmp_path / "target"):
        raise OSError(number, os.strerror(number))
    assert refused.value.reason == reason
    assert refused.value.exit_code == 73
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR])
@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_unreadable_input_is_not_blamed_on_the_output(
    tmp_path: Path, write: Writer, number: int
) -> None:
    source = str(tmp_path / "input" / "bold.nii.gz")
    with pytest.raises(OSError) as raised, write(tmp_path / "output" / "target"):
        raise OSError(number, os.strerror(number), source)
    assert raised.value.filename == source


@pytest.mark.parametrize("content", [float("nan"), [float("inf")], {"a": object()}])
def test_what_is_no_json_is_not_written(tmp_path: Path, content: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", content)
    assert list_names(tmp_path) == []


def test_json_reads_back(tmp_path: Path) -> None:
    content = {"Ä": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


HOLD = """
import sys, time
from pathlib import Path
from slimbrain_app.files import lock
with lock(Path(sys.argv[1]), "sub-01"):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_lock_keeps_another_process_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "sub-01.lock"
    with other_process(HOLD, path) as holder:
        with pytest.raises(RunRefused) as refused, lock(path, "sub-01"):
            pytest.fail("two processes held the lock at once")
        assert holder.poll() is None
    assert (refused.value.reason, refused.value.exit_code) == ("locked", 75)
    assert refused.value.file == "sub-01"
    with lock(path, "sub-01"):
        pass


def test_lock_that_is_waited_for_comes_when_its_holder_ends(tmp_path: Path) -> None:
    path = tmp_path / "shared.lock"
    with other_process(HOLD, path) as holder:
        threading.Timer(0.5, holder.kill).start()
        with lock(path, "shared", wait=True):
            assert holder.wait(timeout=10) != 0


def test_lock_that_fails_for_another_reason_than_that_there_is_none_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CallRefused) as refused, lock(tmp_path / "sub-01.lock", "sub-01"):
        pytest.fail("nobody holds it")
    assert (refused.value.reason, refused.value.exit_code) == ("not-writable", 73)


def test_numpys_error_of_a_full_disk_is_known(tmp_path: Path) -> None:
    """It has no number."""
    with pytest.raises(CallRefused) as refused, writing(tmp_path / "signal.npy"):
        raise OSError("234360 requested and 116704 written")
    assert refused.value.reason == "disk-full"


def test_lock_is_given_back_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "sub-01.lock"
    with pytest.raises(ValueError, match="inside"), lock(path, "sub-01"):
        raise ValueError("inside")
    with lock(path, "sub-01"), pytest.raises(RunRefused), lock(path, "sub-01"):
        pytest.fail("the lock was given twice")


def test_locks_of_two_participants_do_not_meet(tmp_path: Path) -> None:
    with lock(tmp_path / "sub-01.lock", "sub-01"), lock(tmp_path / "sub-02.lock", "sub-02"):
        pass
