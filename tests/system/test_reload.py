"""Reload: each worker replaced by one that was tried first; a release that does not start changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    Server,
    ask,
    asking,
    collect,
    connect,
    crowd,
    freeze,
    hold,
    is_over,
    kill,
    load,
    read_all,
    release,
    who,
)

MakeServer = Callable[..., Server]

BLOCKING = """
import os
VERSION = {version!r}
{extra}
def handler(conn, addr):
    conn.recv(4096)
    conn.sendall(f"{{VERSION}} {{os.getpid()}}\\n".encode())
"""
ASYNCIO = """
import os
VERSION = {version!r}
{extra}
async def handler(reader, writer):
    await reader.read(4096)
    writer.write(f"{{VERSION}} {{os.getpid()}}\\n".encode())
"""
SOURCES = {"blocking": BLOCKING, "threads": BLOCKING, "asyncio": ASYNCIO}


class Release:
    """An application in a folder, of which another version can be put there."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self._source = folder, SOURCES[kind]

    def put(self, version: str, extra: str = "") -> None:
        text = self._source.format(version=version, extra=extra)
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.rename(self.folder / "app.py")  # never half of it


@pytest.fixture
def release_folder(tmp_path: Path, kind: str) -> Release:
    made = Release(tmp_path, kind)
    made.put("one")
    return made


def start(server: MakeServer, made: Release, **options: object) -> Server:
    # Without compiled files: two versions within one second would look the same. A trial takes no time, where it is not
    # the subject.
    options = {"min_uptime": 0, **options}
    return server().start("app:handler", cwd=made.folder, environ={"PYTHONDONTWRITEBYTECODE": "1"}, **options)


LIVES = 1000 if os.environ.get("FAULTS") == "all" else 8


def test_many_threads_leave_without_a_crash(server: MakeServer) -> None:
    """Each of 64 threads is woken by its control thread, again and again, until it has left."""
    one = server().start("apps:act", workers=2, threads=64, min_uptime=0)
    with load(one.address) as answers:
        for count in range(1, LIVES // 2 + 1):
            one.send(signal.SIGHUP)
            one.wait_log("reloaded: 2 workers are new", count)
    assert answers
    one.wait_workers(2)
    assert "was killed by" not in one.log
    assert "in progress" not in one.log


def versions(one: Server, count: int = 20) -> set[str]:
    answers = [answer for answer in collect(crowd(one.address, count, "x")) if answer]
    assert len(answers) == count
    return {answer.decode().split()[0] for answer in answers}


# ---- what works ------------------------------------------------------------------------------------------------------


def test_new_code_is_served_and_nobody_is_dropped(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=3, **options)
    old = one.workers
    with load(one.address):
        for version in ("two", "three", "four"):
            release_folder.put(version)
            one.send(signal.SIGHUP)
            one.wait_log("reloaded: 3 workers are new", ("two", "three", "four").index(version) + 1)
    one.wait_replaced()
    assert versions(one) == {"four"}
    assert not set(one.wait_workers(3, gone=old)) & set(old)
    assert "WARNING" not in one.log


def test_one_at_a_time_and_the_new_one_first(server: MakeServer, release_folder: Release, options: dict) -> None:
    """No old worker drains before its successor was ready, and never two are on their way."""
    one = start(server, release_folder, workers=4, **options)
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 4 workers are new")
    one.wait_workers(4)
    ready = drained = 0
    for line in one.log.partition("reloading 4 workers")[2].splitlines():
        ready += "BOOTING->READY" in line
        drained += "READY->DRAINING" in line
        assert drained <= ready <= drained + 1, one.log
    assert (ready, drained) == (4, 4)


def test_several_at_a_time(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=4, reload_batch=3, **options)
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 4 workers are new")
    old_first = one.log.partition("reloading 4 workers")[2]
    assert old_first.count("READY->DRAINING") == 4
    assert versions(one) == {"one"}


def test_what_was_begun_is_finished(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=1, min_uptime=0, **options)
    old = one.workers
    with hold(one.address) as held:
        one.send(signal.SIGHUP)
        one.wait_log("reloaded: 1 worker is new")
        # A thread of the old one may be on its way to the queue that they share, until it has heard.
        one.wait_until(lambda: ask(one.address)["generation"] == 2, "the new one serves")
        assert not is_over(old[0])
        assert release(held) == b"released\n"
    one.wait_workers(1, gone=old)


def test_what_waits_for_an_old_worker_goes_to_the_new_one(server: MakeServer, handler: str, options: dict) -> None:
    """It is stopped, and so cannot take what was passed to it; its successor can."""
    one = server().start(f"apps:{handler}", workers=1, min_uptime=0, drain_timeout=1, **options)
    (old,) = one.workers
    freeze(old)
    waiting = crowd(one.address, 30)
    one.wait_idle_master()
    one.send(signal.SIGHUP)
    answers = who(collect(waiting))
    assert None not in answers
    assert {answer["generation"] for answer in answers} == {2}
    one.expect("does not stop")
    one.wait_workers(1, gone=[old])


def test_a_storm_of_hangups_is_two_reloads(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=2, **options)
    with load(one.address):
        release_folder.put("two", extra="import time; time.sleep(0.3)")
        one.send(signal.SIGHUP)
        one.wait_log("reloading 2 workers")
        for _ in range(99):
            one.send(signal.SIGHUP)
        one.wait_log("reloaded: 2 workers are new", 2)
    release_folder.put("three")
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 2 workers are new", 3)
    one.wait_replaced()
    assert one.log.count("reloading 2 workers") == 3
    assert versions(one) == {"three"}


def test_a_hangup_while_it_boots(server: MakeServer, release_folder: Release, options: dict) -> None:
    release_folder.put("one", extra="import time; time.sleep(0.3)")
    one = start(server, release_folder, workers=2, wait=False, **options)
    one.wait_log("listening on")
    release_folder.put("two")
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 2 workers are new")
    one.wait_replaced()
    assert versions(one) == {"two"}


# ---- what does not ---------------------------------------------------------------------------------------------------

BROKEN = {
    "raises at import": ("raise ValueError('not today')", "ValueError: not today"),
    "exits at start": ("import os; os._exit(9)", "exited with code 9"),
    "calls sys.exit": ("raise SystemExit(7)", "SystemExit"),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    "never becomes ready": ("import time; time.sleep(60)", "not ready after 0.5 s"),
}


DIES = "import os, threading; threading.Timer(0.3, os._exit, (9,)).start()"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_release_that_dies_when_it_is_ready_changes_nothing(
    server: MakeServer, release_folder: Release, options: dict, batch: int
) -> None:
    """Its workers serve, on trial: the clients that they serve when they die get no answer; all others do."""
    one = start(server, release_folder, workers=3, reload_batch=batch, min_uptime=60, **options)
    one.expect("reload aborted")
    old = one.workers
    release_folder.put("two", DIES)

    def ask_on(answers: list[bytes]) -> None:
        try:
            with connect(one.address, "x") as client:
                answers.append(read_all(client))
        except ConnectionResetError:
            answers.append(b"")

    with asking(ask_on, 2) as answers:
        one.send(signal.SIGHUP)
        one.wait_log("reload aborted, 0 of 3 workers are new, the rest not replaced: .*exited with code 9")
    assert answers.count(b"") <= one.in_hands
    assert one.wait_workers(3) == old
    assert versions(one) == {"one"}
    assert "reloaded" not in one.log


def test_one_on_trial_serves_beside_the_old_one(server: MakeServer, handler: str, options: dict) -> None:
    """A client's address goes to the newer of the two."""
    one = server().start(f"apps:{handler}", workers=1, min_uptime=60, policy="source-hash", **options)
    one.send(signal.SIGHUP)
    one.wait_ready_workers(2)
    assert {ask(one.address)["generation"] for _ in range(10)} == {2}
    (old, new) = one.workers
    one.expect("reload aborted")
    kill(new)
    one.wait_log("reload aborted, 0 of 1 worker is new, the rest not replaced")
    assert ask(one.address)["generation"] == 1
    assert one.workers == [old]


def test_a_stop_while_one_is_on_trial(server: MakeServer, handler: str, options: dict) -> None:
    """Both finish their connections."""
    one = server().start(f"apps:{handler}", workers=1, min_uptime=60, **options)
    with hold(one.address) as first:
        one.send(signal.SIGHUP)
        one.wait_ready_workers(2)
        second = [hold(one.address) for _ in range(2 * options.get("threads", 1) - 1)]  # as many as they may
        one.send(signal.SIGTERM)
        one.wait_log("reload aborted, 0 of 1 worker is new, the rest not replaced: the server stops")
        for sock in (first, *second):
            assert release(sock) == b"released\n"
    assert one.wait_exit() == 0


def test_the_log_says_when_the_last_old_worker_has_gone(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, min_uptime=0, **options)
    with hold(one.address) as held:
        one.send(signal.SIGHUP)
        one.wait_log("reloaded: 2 workers are new; [12] old finish")
        one.wait_workers(3)
        assert "was replaced has exited" not in one.log
        assert release(held) == b"released\n"
    one.wait_log("the last worker that was replaced has exited")
    one.wait_workers(2)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_release_changes_nothing(server: MakeServer, release_folder: Release, options: dict, how: str) -> None:
    extra, reason = BROKEN[how]
    one = start(server, release_folder, workers=3, boot_timeout=0.5, **options)
    one.expect("reload aborted", "could not start", "Traceback", "Error: not today", "is not ready", "SystemExit")
    one.expect("Python stacks at death", "^ *Fatal Python error")  # one that never becomes ready
    old = one.workers
    with load(one.address):
        for count in (1, 2):
            release_folder.put("broken", extra)
            one.send(signal.SIGHUP)
            one.wait_log("reload aborted, 0 of 3 workers are new, the rest not replaced", count)
    assert reason in one.log.partition("reload aborted")[2].splitlines()[0], one.log
    assert one.wait_workers(3) == old
    assert versions(one) == {"one"}
    release_folder.put("two")
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 3 workers are new")
    one.wait_replaced()
    assert versions(one) == {"two"}


def test_the_traceback_of_a_broken_release_is_logged(
    server: MakeServer, release_folder: Release, options: dict
) -> None:
    one = start(server, release_folder, workers=1, **options)
    one.expect("reload aborted", "could not start", "Traceback", "ZeroDivisionError")
    release_folder.put("broken", "1 / 0")
    one.send(signal.SIGHUP)
    one.wait_log("reload aborted, 0 of 1 worker is new, the rest not replaced: .*ZeroDivisionError")
    assert "    1 / 0" in one.log


def test_term_during_a_reload(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=2, **options)
    release_folder.put("slow", extra="import time; time.sleep(5)")
    one.send(signal.SIGHUP)
    one.wait_workers(3)
    one.send(signal.SIGTERM)
    assert one.wait_exit() == 0
    assert "INFO reload aborted, 0 of 2 workers are new, the rest not replaced: the server stops" in one.log


def test_the_old_one_dies_while_its_successor_boots(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=1, **options)
    (old,) = one.workers
    release_folder.put("two", extra="import time; time.sleep(0.5)")
    one.send(signal.SIGHUP)
    one.wait_workers(2)
    kill(old)
    answers = collect(crowd(one.address, 20, "x"))
    assert {answer and answer.split()[0] for answer in answers} == {b"two"}
    one.wait_log("reloaded: 1 worker is new")
    assert len(one.workers) == 1


def test_the_successor_is_killed_while_it_boots(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=1, **options)
    one.expect("reload aborted")
    old = one.workers
    release_folder.put("two", extra="import time; time.sleep(5)")
    one.send(signal.SIGHUP)
    kill(one.wait_workers(2)[-1])
    one.wait_log("reload aborted, 0 of 1 worker is new, the rest not replaced: .*was killed by SIGKILL")
    assert one.wait_workers(1) == old
    assert versions(one) == {"one"}


def test_preloaded_code_stays(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=2, preload=True, **options)
    one.wait_log("loaded in the master: a reload keeps its code")
    release_folder.put("two")
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 2 workers are new")
    assert versions(one) == {"one"}


def test_a_preloaded_application_that_cannot_be_loaded(server: MakeServer, release_folder: Release) -> None:
    release_folder.put("broken", "1 / 0")
    one = start(server, release_folder, workers=2, preload=True, wait=False)
    one.expect("pyfanout: ", "Traceback", "ZeroDivisionError")
    assert one.wait_exit() == 4


# ---- many ------------------------------------------------------------------------------------------------------------


def test_descriptors_after_many_reloads(server: MakeServer, release_folder: Release, options: dict) -> None:
    one = start(server, release_folder, workers=2, **options)

    def reload(count: int) -> int:
        one.send(signal.SIGHUP)
        one.wait_log("reloaded: 2 workers are new", count)
        one.wait_replaced()
        one.wait_idle_master()
        return len(os.listdir(f"/proc/{one.pid}/fd"))

    first = reload(1)
    assert [reload(count) for count in range(2, 12)] == [first] * 10
