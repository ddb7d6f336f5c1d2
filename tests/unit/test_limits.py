"""The limit of open files: who raises it how far, and that it is what it was afterwards."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from master_script import run

from pyfanout import limits
from pyfanout.limits import ANY, OpenFiles, of_connections

Limits = tuple[int, int]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Limits]]:
    """Has the system say what its limits are, and refuse to change them; returns the list of what they were."""

    def make(found: Limits, refusal: Exception | None = None, *, silent: bool = False) -> list[Limits]:
        values = [found]

        def get(_: int) -> Limits:
            if silent:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            return values[-1]

        def set_(_: int, new: Limits) -> None:
            if refusal is not None:
                raise refusal
            values.append(new)

        monkeypatch.setattr(resource, "getrlimit", get)
        monkeypatch.setattr(resource, "setrlimit", set_)
        return values

    return make


def test_no_further_than_needed(system: Callable[..., list[Limits]]) -> None:
    values = system((1024, 1_000_000_000))
    one = OpenFiles()
    one.raise_to(1000)
    one.raise_to(of_connections(1000))
    one.raise_to(1500)
    assert values == [(1024, 1_000_000_000), (2256, 1_000_000_000)]
    one.restore()
    one.restore()
    assert values[2:] == [(1024, 1_000_000_000)]


def test_never_beyond_what_is_sensible(system: Callable[..., list[Limits]]) -> None:
    """Containers allow a billion; what a user has set himself stays."""
    for found in ((1024, 1_073_741_816), (1024, resource.RLIM_INFINITY)):
        values = system(found)
        OpenFiles().raise_to(of_connections(0))
        assert values[-1] == (ANY, found[1])
    for soft in (ANY + 1, resource.RLIM_INFINITY):
        values = system((soft, resource.RLIM_INFINITY))
        one = OpenFiles()
        one.raise_to(of_connections(0))
        assert len(values) == 1
        assert one.soft >= ANY


def test_no_further_than_the_hard_one(system: Callable[..., list[Limits]]) -> None:
    values = system((100, 400))
    OpenFiles().raise_to(of_connections(0))
    assert values == [(100, 400), (400, 400)]


def test_what_the_program_sets_meanwhile_stays(system: Callable[..., list[Limits]]) -> None:
    values = system((100, 400))
    one = OpenFiles()
    one.raise_to(200)
    values.append((300, 400))
    one.raise_to(400)
    one.restore()
    assert values[-1] == (300, 400)


@pytest.mark.parametrize("refusal", [OSError(errno.ENOSYS, "Function not implemented"), ValueError("not allowed")])
def test_a_sandbox_that_refuses(
    system: Callable[..., list[Limits]], refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    system((100, 400), refusal)
    one = OpenFiles()
    with caplog.at_level("INFO", "pyfanout"):
        one.raise_to(200)
    assert one.soft == 100
    assert "the limit of open files stays at 100" in caplog.text
    one.restore()


def test_a_sandbox_that_does_not_say(system: Callable[..., list[Limits]]) -> None:
    values = system((0, 0), silent=True)
    one = OpenFiles()
    one.raise_to(2000)
    assert (one.soft, len(values)) == (limits._UNKNOWN, 1)


def test_the_limits_of_a_server(tmp_path: Path) -> None:
    """Each process has what it needs: a worker whose handlers block needs no more than the program had."""
    run(
        tmp_path,
        """
        import resource
        from pyfanout.master.timing import open_files

        def limit():
            return resource.getrlimit(resource.RLIMIT_NOFILE)

        release('''
        import resource
        def handler(conn, addr):
            conn.recv(99)
            conn.sendall(b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        async def coroutine(reader, writer):
            await reader.read(99)
            writer.write(b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            writer.close()
        '''.replace("\\n        ", "\\n"))
        found = (128, 10_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, found)
        for app, most, expected in ("handler", 0, 128), ("coroutine", 0, 10_000), ("coroutine", 500, 1256):
            with pyfanout.Master(f"app:{app}", workers=1, max_connections=most, **options) as master:
                until_ready(master)
                assert limit() == (open_files(1, 1), 10_000), limit()
                assert ask(master) == expected
                if not most:
                    master.scale(2)
                    assert limit() == (open_files(2, 1), 10_000), limit()
                    assert ask(master) == ask(master) == expected
            assert limit() == found, limit()
        try:
            with pyfanout.Master("app:nothing", workers=1, **options) as master:
                master.run()
        except pyfanout.LoadError:
            assert limit() == found, limit()
        """,
    )
