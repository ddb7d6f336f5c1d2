"""ready_fd: what it may be, whose it is, and what workers do with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from master_script import run

from pyfanout.errors import ConfigError
from pyfanout.master.readiness import Readiness


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_it_is_told_once_by_a_copy(pipe: tuple[int, int]) -> None:
    """The program may close its own at any time; the reader sees the end when both are closed."""
    reader, writer = pipe
    one = Readiness(writer)
    os.close(writer)
    with pytest.raises(BlockingIOError):
        os.read(reader, 9)
    one.tell()
    assert (os.read(reader, 9), os.read(reader, 9)) == (b"\n", b"")
    one.tell()
    one.forget()
    one.close()


def test_none() -> None:
    one = Readiness(None)
    one.refuse_listener()
    one.tell()
    one.forget()
    one.close()


def test_a_worker_closes_both(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    Readiness(writer).forget()
    assert os.read(reader, 9) == b""


def test_a_worker_closes_no_other_file_of_that_number(pipe: tuple[int, int], tmp_path: Path) -> None:
    _, writer = pipe
    one = Readiness(writer)
    os.close(writer)
    stranger = os.open(tmp_path, os.O_RDONLY)
    assert stranger == writer
    one.forget()
    os.fstat(stranger)


def test_without_room_it_is_not_told(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """The master would wait for ever."""
    _, writer = pipe
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    Readiness(writer).tell()
    assert f"ready_fd {writer} is full: no newline is written" in caplog.text


def test_a_reader_that_is_gone(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = pipe
    os.close(reader)
    Readiness(writer).tell()
    assert f"ready_fd {writer}: Broken pipe" in caplog.text


def test_what_it_may_not_be(pipe: tuple[int, int]) -> None:
    reader, _ = pipe
    with pytest.raises(ConfigError, match="ready_fd: 1000000 is not an open descriptor"):
        Readiness(1_000_000)
    with pytest.raises(ConfigError, match=f"ready_fd: {reader} is not open for writing"):
        Readiness(reader)
    with socket.socket() as sock:
        one = Readiness(sock.fileno())
        sock.bind(("127.0.0.1", 0))
        one.refuse_listener()
        sock.listen()
        with pytest.raises(ConfigError, match=f"ready_fd: {sock.fileno()} is a listening socket"):
            one.refuse_listener()
        one.close()


def test_no_descriptor_is_free(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(fd: int, command: int, *arguments: int) -> int:
        if command == fcntl.F_DUPFD_CLOEXEC:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(fd, command, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(ConfigError, match="cannot be duplicated: Too many open files"):
        Readiness(pipe[1])


def test_a_program_that_closes_its_own(tmp_path: Path) -> None:
    """Later workers have the file that has its number by then."""
    run(
        tmp_path,
        """
        release(APP.replace("b'%d' % os.getpid()", "b'%d' % os.fstat(int(os.environ['NUMBER'])).st_ino"))
        reader, writer = os.pipe()
        os.environ["NUMBER"] = str(writer)
        with pyfanout.Master("app:handler", workers=1, ready_fd=writer, **options) as master:
            until_ready(master)
            assert os.read(reader, 9) == b"\\n"
            os.close(writer)
            assert os.read(reader, 9) == b""
            stranger = os.open("app.py", os.O_RDONLY)
            assert stranger == writer
            master.reload()
            assert ask(master) == os.fstat(stranger).st_ino
        os.close(stranger)
        os.close(reader)
        """,
    )
