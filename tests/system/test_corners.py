"""Corners that an independent reading found, 2026-11-22: each was wrong once. Programmes as in test_master."""

from __future__ import annotations

from pathlib import Path

import pytest
from master_script import run

ASYNCIO = """
        async def handler(reader, writer):
            while line := await reader.readline():
                writer.write(b"%d\\n" % os.getpid())
                await writer.drain()

        def client(master, line=b"x\\n"):
            host, port = master.addresses[0].rsplit(":", 1)
            made = socket.create_connection((host, int(port)), 20)
            made.sendall(line)
            made.setblocking(False)
            return made

        def answer(master, made):
            got = []
            def has_come():
                try:
                    got.append(made.recv(99))
                except BlockingIOError:
                    pass
                return got
            until(master, has_come, "an answer")
            return got[0]

        over = []
        class Over(logging.Handler):
            def emit(self, record):
                if "is over" in record.getMessage() or "connections in progress" in record.getMessage():
                    over.append(record.getMessage())
        logging.getLogger("pyfanout").addHandler(Over())
        options["log_level"] = "info"
"""


# ---- a graceful stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("idle", "waiting"), [(4, 0), (3, 0), (4, 2)])
def test_a_stop_when_workers_hold_all_that_they_may(tmp_path: Path, idle: int, waiting: int) -> None:
    """Idle connections are ended, so that there is room for those that wait, and for the end of the channel."""
    run(
        tmp_path,
        f"""
        import logging
        {ASYNCIO}
        with pyfanout.Master(handler, workers=1, max_connections=4, drain_timeout=60, **options) as master:
            until_ready(master)
            held = [client(master) for _ in range({idle})]
            pids = [answer(master, made) for made in held]
            queued = [client(master) for _ in range({waiting})]
            master.step(0.1)
            master.stop()
            until_over(master)
            assert all(made.recv(9) == b"" for made in held)
            for made in queued:
                assert made.recv(99) in pids
        assert not over, over
        """,
    )


def test_a_stop_when_nobody_can_serve_does_not_wait(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=1, drain_timeout=60, **options) as master:
            until_ready(master)
            release("1 / 0")
            os.kill(master.workers[0].pid, signal.SIGKILL)
            until(master, lambda: states(master) == ["FAILED"], "FAILED")
            master.stop()
            until_over(master)
        """,
    )


def test_the_pool_is_served_when_its_last_reader_dies_beside_an_old_worker(tmp_path: Path) -> None:
    """The old one, which drains after a reload, does not read it any more."""
    run(
        tmp_path,
        f"""
        import logging
        {ASYNCIO}
        def handler(conn, addr):
            line = conn.recv(99)
            if line == b"hold\\n":
                conn.recv(99)
            conn.sendall(b"%d" % os.getpid())

        def took(master, many):
            return lambda: sum(worker.in_flight for worker in master.workers) == many

        with pyfanout.Master(handler, workers=1, drain_timeout=60, **options) as master:
            until_ready(master)
            first = client(master, b"hold\\n")
            until(master, took(master, 1), "taken")
            master.reload()
            second = client(master, b"hold\\n")
            until(master, took(master, 2), "taken by the new one")
            third = client(master)
            master.step(0.1)
            master.stop()
            until(master, lambda: states(master) == ["DRAINING", "DRAINING"], "the queue was passed")
            os.kill(master.workers[1].pid, signal.SIGKILL)
            assert answer(master, third).isdigit()
            first.sendall(b"on")
            master.run()
            assert first.recv(99).isdigit()
        """,
    )


# ---- callbacks that stop the server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("cause", ["reload", "scale", "respawn"])
def test_a_callback_that_stops_during_a_fork(tmp_path: Path, cause: str, at_once: bool) -> None:
    run(
        tmp_path,
        f"""
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            master.on("fork", lambda notice: master.stop(at_once={at_once}))
            if "{cause}" == "respawn":
                os.kill(master.workers[0].pid, signal.SIGKILL)
            elif "{cause}" == "reload":
                master.reload(wait=False)
            else:
                master.scale(6, wait=False)
            until_over(master)
        """,
    )


def test_a_callback_that_stops_at_once_when_a_slot_has_failed(tmp_path: Path) -> None:
    """`fail_fast` does not turn that into a graceful stop; and the callback sees the state."""
    run(
        tmp_path,
        """
        seen = []
        def gave_up(notice):
            seen.append(states(master)[0])
            master.stop(at_once=True)

        with pyfanout.Master("app:handler", workers=1, fail_fast=True, drain_timeout=60, **options) as master:
            until_ready(master)
            master.on("give_up", gave_up)
            release("1 / 0")
            os.kill(master.workers[0].pid, signal.SIGKILL)
            try:
                master.run()
            except pyfanout.WorkerError:
                pass
            assert seen == ["FAILED"], seen
        """,
    )


# ---- reload and scale ------------------------------------------------------------------------------------------------


def test_a_reload_for_which_the_kernel_has_no_process_changes_nothing(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            old, fork = [worker.pid for worker in master.workers], os.fork

            def refuse():
                raise BlockingIOError(11, "no more processes")

            os.fork = refuse
            try:
                master.reload()
            except pyfanout.ReloadError as error:
                assert "cannot be started" in str(error)
            else:
                raise AssertionError
            os.fork = fork
            for _ in range(10):  # it came after a tenth of a second
                master.step(0.1)
            assert [worker.pid for worker in master.workers] == old
        """,
    )


def test_a_successor_that_was_told_to_leave_does_not_get_the_slot(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import asyncio

        async def handler(reader, writer):
            writer.close()

        async def start(worker):
            if worker.generation == 2:
                if worker.slot == 1:
                    while not Path("hung").exists():
                        await asyncio.sleep(0.01)
                    raise RuntimeError("broken")
                asyncio.get_running_loop().call_soon(hang)

        def hang():
            Path("hung").touch()
            time.sleep(60)

        with pyfanout.Master(
            handler, workers=2, reload_batch=2, drain_timeout=60, on_worker_start=start, **options
        ) as master:
            until_ready(master)
            try:
                master.reload()
            except pyfanout.ReloadError as error:
                assert "broken" in str(error), error
            else:
                raise AssertionError
            (old,) = [w.pid for w in master.workers if w.slot == 0 and w.generation == 1]
            os.kill(old, signal.SIGKILL)
            until(master, lambda: any(w.slot == 0 and w.generation == 3 and w.state == "READY" for w in master.workers),
                  "another one")
        """,
    )


def test_scale_does_not_wait_for_workers_that_others_replaced(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
        import logging
        {ASYNCIO}
        with pyfanout.Master(handler, workers=1, drain_timeout=60, **options) as master:
            until_ready(master)
            held = client(master, b"half a line")
            until(master, lambda: master.workers[0].in_flight == 1, "taken")
            master.reload()
            master.scale(2)
            assert sorted(states(master)) == ["DRAINING", "READY", "READY"]
            master.stop(at_once=True)
            master.run()
        """,
    )


def test_a_worker_that_is_ready_before_the_master_knows_is_not_cut_off(tmp_path: Path) -> None:
    """It reads from the pool as soon as it can; one reset in 150,000 while scaling up and down."""
    run(
        tmp_path,
        f"""
        import logging
        {ASYNCIO}
        def handler(conn, addr):
            conn.recv(99)
            conn.sendall(b"held")
            conn.recv(99)
            conn.sendall(b"%d" % os.getpid())

        with pyfanout.Master(handler, workers=1, drain_timeout=60, **options) as master:
            until_ready(master)
            first = client(master)
            assert answer(master, first) == b"held"
            second = client(master)  # waits in the pool
            for _ in range(5):
                master.step(0.05)
            master.scale(2, wait=False)
            master.step(0)  # which forks it
            second.setblocking(True)
            assert second.recv(4) == b"held"  # by the new one, while the master has not come round
            assert states(master) == ["READY", "BOOTING"]
            master.scale(1, wait=False)
            for _ in range(5):
                master.step(0.05)
            second.sendall(b"on")
            assert second.recv(99).isdigit()
            first.sendall(b"on")
            master.stop()
            master.run()
        """,
    )


def test_one_reload_more_is_told_that_the_server_stops(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=1, **options) as master:
            until_ready(master)
            release("import time; time.sleep(60)")
            master.reload(wait=False)
            master.on("reload", lambda notice: print("told:", notice.detail))
            until(master, lambda: "BOOTING" in states(master), "a new one")
            asked = []
            master._supervisor.reload(asked.append)
            master.stop()
            assert asked == ["the server stops"], asked
            master.run()
        """,
    )


def test_what_a_slot_without_a_worker_leaves_when_it_is_scaled_away(tmp_path: Path) -> None:
    """Its channel is closed; and when all who are left are ready, that is told."""
    run(
        tmp_path,
        """
        def start(worker):
            if worker.slot:
                raise RuntimeError("broken")

        def handler(conn, addr):
            pass

        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with pyfanout.Master(handler, workers=1, on_worker_start=start, **options) as master:
            until_ready(master)
            before = len(os.listdir("/proc/self/fd"))
            master.scale(8, wait=False)
            until(master, lambda: states(master)[1:] == ["FAILED"] * 7, "all but one are FAILED")
            master.scale(1)
            assert len(os.listdir("/proc/self/fd")) == before
        with pyfanout.Master(handler, workers=2, ready_fd=writer, on_worker_start=start, **options) as master:
            until(master, lambda: states(master)[0] == "READY", "ready")
            try:
                os.read(reader, 9)
            except BlockingIOError:
                pass
            else:
                raise AssertionError
            master.scale(1)
            assert os.read(reader, 9) == b"\\n"
        """,
    )


# ---- death -----------------------------------------------------------------------------------------------------------


def test_workers_that_always_resign_at_once_are_held_back(tmp_path: Path) -> None:
    """A watcher of memory that fires at the start, say: else that would be hundreds of forks in a second."""
    run(
        tmp_path,
        """
        import threading

        def handler(conn, addr):
            pass

        def start(worker):
            if worker.slot:
                threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGTERM)).start()

        with pyfanout.Master(handler, workers=2, on_worker_start=start, **options) as master:
            until(master, lambda: states(master) == ["READY", "FAILED"], "the second has FAILED")
            assert master.workers[1].generation <= 7
        """,
    )
