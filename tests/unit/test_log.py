"""A log that nobody reads keeps nobody waiting; a text of others drives no terminal and looks like no line of ours."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest

from pyfanout.host import log as module
from pyfanout.host.log import PATIENCE_S, Handler, Lines, plain

PIPE_BYTES = 4096
NOTE = re.compile(r"(\d+) lines? (?:was|were) lost: the log was not read")

Log = tuple[logging.Logger, Callable[[], str]]
"""What is logged to, and what reads all that is there now."""


@contextlib.contextmanager
def logging_to(fd: int) -> Iterator[logging.Logger]:
    """Takes `fd` over."""
    with (
        open(fd, "w") as stream,
        contextlib.closing(Handler(stream)) as handler,
        patch("pyfanout.host.log.handlers_of", lambda _: [handler]),  # pytest has some, which would take the lines
    ):
        handler.setFormatter(Lines("%(message)s"))
        log = logging.Logger("test")
        log.addHandler(handler)
        yield log
        assert os.get_blocking(fd), "the file is the shell's, too"


def read(fd: int) -> str:
    text = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(fd, 1 << 20):
            text += more
    return text.decode()


def pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reading, writing


def pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
    return ours.detach(), theirs.detach()


def terminal() -> tuple[int, int]:
    reading, writing = os.openpty()
    settings = termios.tcgetattr(writing)
    settings[1] = 0  # no carriage return before each newline
    termios.tcsetattr(writing, termios.TCSANOW, settings)
    return reading, writing


@pytest.fixture(params=[pipe, pair, terminal])
def log(request: pytest.FixtureRequest, guard: None) -> Iterator[Log]:
    reading, writing = request.param()
    os.set_blocking(reading, False)
    with logging_to(writing) as logger:
        yield logger, lambda: read(reading)
    os.close(reading)


def fill(log: logging.Logger) -> int:
    """Lines, of which the last ones are lost; how many were logged."""
    handler = log.handlers[0]
    assert isinstance(handler, Handler)
    count = 0
    while handler._lost < 5:
        log.error("line %d %s", count, "x" * 100)
        count += 1
    return count


# ---- nobody waits ----------------------------------------------------------------------------------------------------


def test_what_is_lost_is_counted_and_said(log: Log) -> None:
    logger, read = log
    count = fill(logger)
    before = read()
    logger.error("the next")
    after = read()
    lines = (before + after).splitlines()
    assert lines[-1] == "the next"
    assert NOTE.fullmatch(lines[-2]), lines[-2]
    assert [int(line.split()[1]) for line in lines[:-2]] == list(range(count - 5)), "whole ones, in their order"
    assert NOTE.findall(after) == ["5"]


def test_only_the_first_one_waits(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Poll:
        def register(self, *_: int) -> None:
            pass

        def poll(self, wait_ms: float) -> list[object]:
            waits.append(wait_ms)
            return []

    monkeypatch.setattr(module, "poll", Poll)
    logger, _ = log
    fill(logger)
    assert len(waits) <= 2, "one fits in part, the next is lost"
    assert all(0 < wait_ms <= PATIENCE_S * 1000 for wait_ms in waits)
    waits.clear()
    (handler,) = logger.handlers
    assert isinstance(handler, Handler)
    through = 0
    """Lines that found room: a terminal makes some when the kernel comes to it."""
    for _ in range(1000):
        logger.error("lost %s", "x" * 200)
        through += handler._lost == 0
    assert len(waits) <= 2 * through, "after a line that was lost none waits"
    assert through < 100


def test_a_long_text_is_not_cut(log: Log) -> None:
    """Its rest comes before all else, however often there is room for a part only."""
    logger, read = log
    long = "\n".join(f"{number} {'y' * 80}" for number in range(400))
    logger.error(long)
    text = read()
    assert text
    assert len(text) < len(plain(long))
    for _ in range(100):
        logger.error("short")
        text += read()
        if text.endswith("short\n"):
            break
    assert text.startswith(plain(long) + "\n")
    assert re.fullmatch(rf"({NOTE.pattern}\n|short\n)+", text.removeprefix(plain(long) + "\n"))


def test_a_child_does_not_say_what_its_parent_lost(log: Log) -> None:
    logger, read = log
    fill(logger)
    read()
    pid = os.fork()
    if pid == 0:
        logger.error("the child's")
        os._exit(0)
    os.waitpid(pid, 0)
    assert read() == "the child's\n"
    logger.error("the parent's")
    assert NOTE.findall(read()) == ["5"]


def test_a_reader_that_is_only_slow_gets_all() -> None:
    reading, writing = pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        count = 0
        while more := os.read(reading, 512):
            count += more.count(b"\n")
        os._exit(count == 300)
    with logging_to(writing) as logger:
        for number in range(300):
            logger.error("line %d %s", number, "x" * 100)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


# ---- where it goes ---------------------------------------------------------------------------------------------------


def test_it_follows_a_stderr_that_is_redirected() -> None:
    first, writing = pipe()
    second, other = pipe()
    with logging_to(writing) as logger:
        logger.error("one")
        os.dup2(other, writing)
        os.close(other)
        logger.error("two")
        assert os.read(second, 99) == b"two\n"
    assert os.read(first, 99) == b"one\n"
    assert os.read(first, 99) == b"", "nobody has it open any more"
    os.close(first)
    os.close(second)


def test_it_writes_into_nobody_elses_file() -> None:
    """A program has closed all descriptors that it does not know, and opened others."""
    reading, writing = pipe()
    theirs, other = os.pipe()
    with logging_to(writing) as logger:
        logger.error("one")
        handler = logger.handlers[0]
        assert isinstance(handler, Handler)
        os.dup2(other, handler._fd)
        number = handler._fd
        logger.error("two")
        assert read_now(reading) == "one\ntwo\n"
        os.close(number)
    os.close(other)
    assert os.read(theirs, 99) == b""
    os.close(theirs)
    os.close(reading)


def read_now(fd: int) -> str:
    os.set_blocking(fd, False)
    return read(fd)


def test_one_that_cannot_be_opened_is_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc; a pipe of another user."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "no")

    reading, writing = pipe()
    with logging_to(writing) as logger:
        monkeypatch.setattr(os, "open", refuse)
        logger.error("one")
        monkeypatch.undo()
        assert os.read(reading, 99) == b"one\n"
    os.close(reading)


def test_no_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with contextlib.closing(Handler()) as handler:
        handler.handle(logging.LogRecord("test", logging.ERROR, "", 0, "nobody hears it", None, None))


def test_what_no_encoding_has_is_written_all_the_same() -> None:
    reading, writing = pipe()
    with logging_to(writing) as logger:
        logger.error("a file: %s", os.fsdecode(b"\xff"))
    assert os.read(reading, 99) == b"a file: \\udcff\n"
    os.close(reading)


# ---- texts of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a line, with a\ttab and ümläuts", "a line, with a\ttab and ümläuts"),
        ("\x1b[2Jgone\x07\x7f", "\\x1b[2Jgone\\x07\\x7f"),
        ("one\r2026-01-01 [1] INFO forged", "one\\x0d2026-01-01 [1] INFO forged"),
        ("\x9b31m \x85 \x00", "\\x9b31m \\x85 \\x00"),
        ("one\n2026-01-01 [1] INFO forged\n  deeper", "one\n  2026-01-01 [1] INFO forged\n    deeper"),
        ("", ""),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_the_text_of_an_exception_is_plain() -> None:
    reading, writing = pipe()
    with logging_to(writing) as logger:
        try:
            raise ValueError("\x1b[2J\nforged")
        except ValueError:
            logger.exception("the handler raised an exception")
    lines = os.read(reading, 9999).decode().splitlines()
    os.close(reading)
    assert lines[0] == "the handler raised an exception"
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-2:] == ["  ValueError: \\x1b[2J", "  forged"]
