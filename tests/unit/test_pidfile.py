"""pidfile: whose it is, when it is replaced, when it is refused."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyfanout.errors import ConfigError
from pyfanout.master.pidfile import PidFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "master.pid"


def dead_pid() -> int:
    """The pid of a process that was, and is reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_create_and_remove(path: Path) -> None:
    pidfile = PidFile(str(path))
    pidfile.create()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == [path.name]
    pidfile.remove()
    assert os.listdir(path.parent) == []
    pidfile.remove()


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_is_replaced(path: Path, text: str) -> None:
    path.write_text(text)
    PidFile(str(path)).create()
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_stale_file_is_replaced(path: Path) -> None:
    for pid in (dead_pid(), 10**20):
        path.write_text(f"{pid}\n")
        PidFile(str(path)).create()
        assert path.read_text() == f"{os.getpid()}\n"


def test_our_own_pid_is_replaced(path: Path) -> None:
    """In a container every master has the same pid."""
    path.write_text(f"{os.getpid()}\n")
    PidFile(str(path)).create()
    assert path.read_text() == f"{os.getpid()}\n"


@pytest.fixture
def neighbour() -> Iterator[int]:
    """The pid of another process that is alive until the test is over."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    yield pid
    ours.close()  # which is what it waits for
    os.waitpid(pid, 0)


def test_a_live_process_keeps_its_file(path: Path, neighbour: int) -> None:
    path.write_text(f"{neighbour}\n")
    with pytest.raises(ConfigError, match=f"process {neighbour} is alive"):
        PidFile(str(path)).create()
    assert path.read_text() == f"{neighbour}\n"


def test_a_process_of_somebody_else_is_alive_too(path: Path) -> None:
    path.write_text("1\n")
    with pytest.raises(ConfigError, match="process 1 is alive"):
        PidFile(str(path)).create()


def test_one_that_cannot_be_looked_at_is_alive(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    path.write_text("12345\n")
    with pytest.raises(ConfigError, match="process 12345 is alive"):
        PidFile(str(path)).create()


def test_a_zombie_is_dead(path: Path) -> None:
    """A master that was killed, and whose parent does not reap it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        path.write_text(f"{pid}\n")
        PidFile(str(path)).create()
    finally:
        os.waitpid(pid, 0)
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_thread_is_no_master(path: Path) -> None:
    """The number of a dead master may go to a thread, too."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        path.write_text(f"{thread.native_id}\n")
        PidFile(str(path)).create()
    finally:
        over.set()
        thread.join()
    assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["root:x:0:0\n", "-1\n", "0\n", "12 13\n", "\xff\n"])
def test_another_sort_of_file_is_left_alone(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match="something else than a process id"):
        PidFile(str(path)).create()
    assert path.read_text() == text
    PidFile(str(path)).remove()
    assert path.read_text() == text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/master\.pid': cannot write it: No such file"):
        PidFile(str(tmp_path / "none/master.pid")).create()


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        PidFile(str(tmp_path)).create()


def test_a_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match="No space left on device"):
        PidFile(str(path)).create()
    assert os.listdir(path.parent) == []


def test_a_file_that_was_taken_over_is_not_removed(path: Path, neighbour: int) -> None:
    pidfile = PidFile(str(path))
    pidfile.create()
    path.write_text(f"{neighbour}\n")
    pidfile.remove()
    assert path.read_text() == f"{neighbour}\n"


def test_a_forked_child_does_not_remove_it(path: Path) -> None:
    pidfile = PidFile(str(path))
    pidfile.create()
    pid = os.fork()
    if pid == 0:
        pidfile.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    pidfile.remove()


def test_the_path_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pidfile = PidFile("master.pid")
    monkeypatch.chdir("/")
    pidfile.create()
    assert (tmp_path / "master.pid").exists()
    pidfile.remove()
