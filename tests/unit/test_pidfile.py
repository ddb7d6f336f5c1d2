"""pidfile: whose it is, when it is replaced, when it is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyfanout.errors import ConfigError
from pyfanout.master import filelock, pidfile
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


@contextmanager
def created(path: Path) -> Iterator[PidFile]:
    """Ours; also when a test fails, no descriptor is left."""
    one = PidFile(str(path))
    one.create()
    try:
        yield one
    finally:
        one.remove()


@contextmanager
def child(first: Callable[[], object]) -> Iterator[int]:
    """The pid of a process that has called `first`, and is alive until the test kills it, or is over."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            first()
            theirs.send(b"+")
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        try:
            assert ours.recv(1) == b"+"
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_create_and_remove(path: Path) -> None:
    one = PidFile(str(path))
    one.create()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == [path.name]
    one.remove()
    assert os.listdir(path.parent) == []
    one.remove()


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_is_replaced(path: Path, text: str) -> None:
    path.write_text(text)
    with created(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_stale_file_is_replaced(path: Path) -> None:
    for pid in (dead_pid(), 10**20, os.getpid()):  # in a container every master has the same pid
        path.write_text(f"{pid}\n")
        with created(path):
            assert path.read_text() == f"{os.getpid()}\n"
            assert os.listdir(path.parent) == [path.name]


def test_a_number_that_was_reused_is_stale(path: Path) -> None:
    """By another program, by init, by a thread."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with child(lambda: None) as stranger:
            for pid in (stranger, 1, thread.native_id):
                path.write_text(f"{pid}\n")
                with created(path):
                    assert path.read_text() == f"{os.getpid()}\n"
    finally:
        over.set()
        thread.join()


def test_a_master_that_is_alive_keeps_its_file(path: Path) -> None:
    with child(lambda: PidFile(str(path)).create()) as master:
        with pytest.raises(ConfigError, match=f"process {master} is alive and has it"):
            PidFile(str(path)).create()
        assert path.read_text() == f"{master}\n"
        assert os.listdir(path.parent) == [path.name]


def test_so_does_another_one_of_this_process(path: Path) -> None:
    with created(path), pytest.raises(ConfigError, match=f"process {os.getpid()} is alive"):
        PidFile(str(path)).create()


def test_one_whose_file_was_emptied_keeps_it(path: Path) -> None:
    with created(path):
        path.write_text("")
        with pytest.raises(ConfigError, match="a process is alive and has it"):
            PidFile(str(path)).create()


def test_a_master_that_was_killed_leaves_it_to_the_next(path: Path) -> None:
    """Whether or not it is reaped: its parent may never do that."""
    with child(lambda: PidFile(str(path)).create()) as master:
        os.kill(master, signal.SIGKILL)
        os.waitid(os.P_PID, master, os.WEXITED | os.WNOWAIT)
        with created(path):
            assert path.read_text() == f"{os.getpid()}\n"


def fork_twice(path: Path, told: int) -> None:
    """A master; its worker, as `os.fork` makes one; the worker's child; and a program that the worker executes."""
    PidFile(str(path)).create()
    if os.fork() == 0:
        if os.fork() == 0:
            os.write(told, b"%d " % os.getpid())
            signal.pause()
        program = subprocess.Popen(["sleep", "600"], close_fds=False)
        os.write(told, b"%d %d " % (os.getpid(), program.pid))
        signal.pause()


def test_its_children_do_not_keep_it(path: Path) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as told, child(lambda: fork_twice(path, writer)) as master:
        left = [int(word) for _ in range(3) if (word := next(words(told)))]
        try:
            os.kill(master, signal.SIGKILL)
            os.waitid(os.P_PID, master, os.WEXITED | os.WNOWAIT)
            with created(path):
                assert path.read_text() == f"{os.getpid()}\n"
            for pid in left:
                os.kill(pid, 0)
        finally:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    os.close(writer)


def words(file: Any) -> Iterator[bytes]:
    """One after the other, as they come."""
    word = b""
    while not word.endswith(b" "):
        word += file.read(1)
    yield word.strip()


def test_two_starts_at_the_same_instant(path: Path) -> None:
    """Each time one has it, whatever was there before; and what is there in the end is its own."""
    script = (
        "import sys; from pyfanout.errors import ConfigError; from pyfanout.master.pidfile import PidFile\n"
        "for line in sys.stdin:\n"
        "    one = PidFile(line.strip())\n"
        "    try: one.create(); print('has', flush=True)\n"
        "    except ConfigError as error: print(error, flush=True)\n"
        "    sys.stdin.readline(); one.remove(); print('removed', flush=True)\n"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]

    def tell(line: str) -> None:
        for each in starts:
            assert each.stdin is not None
            each.stdin.write(f"{line}\n")
            each.stdin.flush()

    try:
        for turn in range(24):
            if turn % 3:
                path.write_text(["", f"{dead_pid()}\n"][turn % 2])
            tell(str(path))
            answers = [each.stdout.readline().strip() for each in starts if each.stdout]
            having = [each for each, answer in zip(starts, answers, strict=True) if answer == "has"]
            assert len(having) == 1, answers
            assert all("is alive and has it" in answer for answer in answers if answer != "has"), answers
            assert path.read_text() == f"{having[0].pid}\n"
            assert os.listdir(path.parent) == [path.name]
            tell("on")
            assert [each.stdout.readline() for each in starts if each.stdout] == ["removed\n"] * 3
            assert os.listdir(path.parent) == []
    finally:
        for each in starts:
            each.kill()
            each.communicate()


def test_users_who_may_only_read_it_hinder_nobody(path: Path) -> None:
    """They can lock it for reading, and by flock."""
    path.write_text(f"{dead_pid()}\n")
    with path.open("rb") as first, path.open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.lockf(second, fcntl.LOCK_SH)
        fcntl.fcntl(first, fcntl.F_OFD_SETLK, filelock._whole_file(fcntl.F_RDLCK))
        with created(path):
            assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file that is not its own")
def test_a_file_of_another_user() -> None:
    """Who may write to the folder may replace it, unless its master is alive."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which only its owner can reach
        path = Path(folder, "master.pid")
        path.parent.chmod(0o777)
        with created(path), child(lambda: check_as_nobody(path, "is alive and has it")):
            pass
        path.write_text("1\n")
        with child(lambda: check_as_nobody(path, None)) as master:
            assert path.read_text() == f"{master}\n"


def check_as_nobody(path: Path, refusal: str | None) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        PidFile(str(path)).create()
    except ConfigError as error:
        ok = refusal is not None and refusal in str(error)
    else:
        ok = refusal is None
    if not ok:
        os._exit(1)


@pytest.mark.parametrize("text", ["root:x:0:0\n", "-1\n", "0\n", "12 13\n", "\xff\n"])
def test_another_sort_of_file_is_left_alone(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match="something else than a process id"):
        PidFile(str(path)).create()
    assert path.read_text() == text
    PidFile(str(path)).remove()
    assert path.read_text() == text


def make_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("1\n")
    path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may make no device")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_link, "a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "a FIFO"),
        (make_socket, "a socket"),
        (make_device, "a device"),
    ],
    ids=["link", "dangling link", "folder", "fifo", "socket", "device"],
)
def test_only_a_regular_file_is_replaced(path: Path, make: Callable[[Path], object], words: str) -> None:
    make(path)
    before, names = path.lstat(), sorted(os.listdir(path.parent))
    one = PidFile(str(path))
    with pytest.raises(ConfigError, match=f"it is {words}, and is left alone"):
        one.create()
    one.remove()
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert sorted(os.listdir(path.parent)) == names


def test_nor_one_that_becomes_another_sort_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def change(name: str, flags: int, *mode: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return real(name, flags, *mode)

    path.write_text("1\n")
    monkeypatch.setattr(os, "open", change)
    with pytest.raises(ConfigError, match="it is a FIFO"):
        PidFile(str(path)).create()
    assert stat.S_ISFIFO(path.lstat().st_mode)


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """As /var/run is one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with created(tmp_path / "run" / "master.pid"):
        assert os.listdir(tmp_path / "real") == ["master.pid"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/master\.pid': cannot write it: No such file"):
        PidFile(str(tmp_path / "none/master.pid")).create()


@pytest.mark.parametrize("call", ["replace", "link", "write"])
def test_a_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    if call == "replace":
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="No space left on device"):
        PidFile(str(path)).create()
    assert os.listdir(path.parent) == ([path.name] if call == "replace" else [])


# ---- file systems and sandboxes without something -------------------------------------------------------------------


def test_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with created(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert os.listdir(path.parent) == [path.name]
        with pytest.raises(ConfigError, match=f"process {os.getpid()} is alive"):
            PidFile(str(path)).create()
    assert os.listdir(path.parent) == []


@pytest.fixture(params=[errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, *_: object) -> bytes:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "fcntl", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_number_decides(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with child(lambda: None) as stranger:
        path.write_text(f"{stranger}\n")
        with pytest.raises(ConfigError, match=f"process {stranger} is alive"):
            PidFile(str(path)).create()
        assert path.read_text() == f"{stranger}\n"
    for pid in (dead_pid(), 10**20, os.getpid()):
        path.write_text(f"{pid}\n")
        with created(path):
            assert path.read_text() == f"{os.getpid()}\n"
    assert "has no locks" in caplog.text
    assert os.listdir(path.parent) == []


def test_without_locks_a_zombie_is_dead(path: Path) -> None:
    """A master that was killed, and whose parent does not reap it. Nor is a thread a master."""
    with child(lambda: None) as stranger:
        assert pidfile._is_alive(stranger)
        os.kill(stranger, signal.SIGKILL)
        os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)
        assert not pidfile._is_alive(stranger)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert not pidfile._is_alive(thread.native_id)
    finally:
        over.set()
        thread.join()


def test_without_locks_one_that_cannot_be_looked_at_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert pidfile._is_alive(12345)


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_a_file_that_was_taken_over_is_not_removed(path: Path) -> None:
    for take_over in (lambda: path.write_text("1\n"), lambda: (path.unlink(), path.write_text(f"{os.getpid()}\n"))):
        with created(path):
            take_over()
            after = path.read_text()
        assert path.read_text() == after


def test_a_forked_child_does_not_remove_it(path: Path) -> None:
    with created(path) as one, child(one.remove):
        assert path.exists()


def test_the_path_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = PidFile("master.pid")
    monkeypatch.chdir("/")
    one.create()
    assert (tmp_path / "master.pid").exists()
    one.remove()
