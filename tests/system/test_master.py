"""Master: the object. Each test is a script of its own, which asserts for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from master_script import run


def test_it_serves_and_shows_its_workers(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            assert ask(master) in [worker.pid for worker in master.workers]
            one = master.workers[0]
            assert (one.slot, one.generation, one.restarts, one.last_death, one.in_flight) == (0, 1, 0, None, 0)
            assert one.since >= 0
            until(master, lambda: all(w.last_pong is not None for w in master.workers), "pongs")
            master.stop()
            master.run()
        """,
    )


def test_a_factory(tmp_path: Path) -> None:
    """Called in each worker, not before."""
    run(
        tmp_path,
        """
        def make():
            pid = os.getpid()
            def handler(conn, addr):
                conn.recv(99)
                conn.sendall(b"%d" % pid)
            return handler

        with pyfanout.Master(make, workers=2, factory=True, **options) as master:
            until_ready(master)
            seen = set()
            until(master, lambda: seen.add(ask(master)) or len(seen) == 2, "both serve")
            assert seen == {worker.pid for worker in master.workers}
        """,
    )


def test_reload_returns_when_all_are_new(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            old = {worker.pid for worker in master.workers}
            master.reload()
            assert ask(master) not in old
            assert [w.generation for w in master.workers if w.state == "READY"] == [2, 2]
        """,
    )


def test_reload_raises_for_a_broken_release(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            old = {worker.pid for worker in master.workers}
            release("1 / 0")
            try:
                master.reload()
            except pyfanout.ReloadError as error:
                assert "ZeroDivisionError" in str(error), error
            else:
                raise AssertionError("it did not raise")
            assert {worker.pid for worker in master.workers} == old
            assert ask(master) in old
            release()
            master.reload()
            assert ask(master) not in old
        """,
    )


def test_scale_returns_when_all_are_there_or_gone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            for count in (5, 1, 3):
                master.scale(count)
                assert states(master) == ["READY"] * count, master.workers
                assert [worker.slot for worker in master.workers] == list(range(count))
            for wrong in (0, -1, 1025):
                try:
                    master.scale(wrong)
                except pyfanout.ConfigError:
                    continue
                raise AssertionError(wrong)
            ask(master)
        """,
    )


def test_scaling_up_with_a_broken_release_raises_and_the_others_serve(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=1, **options) as master:
            until_ready(master)
            release("raise SystemExit(5)")
            try:
                master.scale(2)
            except pyfanout.WorkerError as error:
                assert "worker=1: its last worker exited with code" in str(error), error
            else:
                raise AssertionError("it did not raise")
            assert ask(master) == master.workers[0].pid
            release()
            until(master, lambda: states(master) == ["READY", "READY"], "it heals")
        """,
    )


def test_callbacks_are_told_and_may_fail(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        seen = []
        with pyfanout.Master("app:handler", workers=1, ping_interval=0.1, ping_timeout=0.5, **options) as master:
            for event in ("fork", "ready", "drain", "exit", "hang", "reload"):
                master.on(event, lambda notice: seen.append((notice.event, notice.worker and notice.worker.state)))
                master.on(event, lambda notice: 1 / 0)
            try:
                master.on("birthday", print)
            except pyfanout.ConfigError as error:
                assert "birthday" in str(error)
            else:
                raise AssertionError("no such event")
            until_ready(master)
            master.reload()
            until(master, lambda: states(master) == ["READY"], "the old one is gone")
            assert sorted(seen) == sorted([
                ("fork", "BOOTING"), ("ready", "READY"), ("fork", "BOOTING"), ("ready", "READY"),
                ("drain", "DRAINING"), ("reload", None), ("exit", "GONE"),
            ]), seen
            del seen[:]
            os.kill(master.workers[0].pid, signal.SIGSTOP)
            until(master, lambda: ("ready", "READY") in seen, "a new one")
            assert [event for event, _ in seen][:2] == ["hang", "fork"] or seen[0] == ("hang", "HUNG"), seen
            assert "hung: no answer to a ping" in master.workers[0].last_death
            assert master.workers[0].restarts == 2
        print("done")
        """,
    )
    assert out.splitlines()[-1] == "done"


def test_asking_again_inside_a_callback_is_refused(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        caught = []
        def again(notice):
            try:
                master.reload()
            except RuntimeError as error:
                caught.append(str(error))
        with pyfanout.Master("app:handler", workers=1, **options) as master:
            master.on("ready", again)
            until(master, lambda: caught, "it is refused")
            assert "wait=False" in caught[0]
        """,
    )


def test_the_garbage_of_a_master_is_collected(tmp_path: Path) -> None:
    """Garbage of its callbacks, or of other code of the program, also when workers are forked again and again. Workers
    still do not write to the pages that they share with it."""
    run(
        tmp_path,
        """
        import gc, weakref
        class Node:
            pass
        nodes = weakref.WeakSet()
        def leave_garbage(notice):
            node = Node()
            node.itself = node
            nodes.add(node)
        def handler(conn, addr):
            conn.recv(99)
            conn.sendall(b"%d" % gc.get_freeze_count())
        with pyfanout.Master(handler, workers=1, min_uptime=0, **options) as master:
            master.on("fork", leave_garbage)
            until_ready(master)
            frozen = gc.get_freeze_count()
            for generation in range(2, 8):
                os.kill(master.workers[0].pid, signal.SIGKILL)
                until(master, lambda: (states(master), master.workers[0].generation) == (["READY"], generation), "next")
            assert len(nodes) == 1, f"{len(nodes)} of 7 are left"
            assert gc.get_freeze_count() <= frozen
            assert ask(master) >= frozen
        """,
    )


def test_a_crash_loop_fails_the_slot_and_leaves_the_others(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        release("import os\\n" + APP.replace("conn.recv(99)", "conn.recv(99) == b'die' and os._exit(3)"))
        told = []
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            master.on("give_up", lambda notice: told.append(notice.detail))
            until_ready(master)
            good = master.workers[1].pid
            def die():
                bad = master.workers[0]
                if bad.state == "READY" and bad.slot == 0:
                    os.kill(bad.pid, signal.SIGKILL)
                return "FAILED" in states(master)
            until(master, die, "it has failed")
            assert "worker=0 has died 6 times in a row" in told[0], told
            assert ask(master) == good
            assert "was killed by SIGKILL" in master.workers[0].last_death
        """,
    )


def test_fail_fast_exits_with_3(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        import threading
        sys.path.insert(0, os.getcwd())
        import app
        class Master(pyfanout.Master):
            def step(self, timeout=None):
                for worker in self.workers:
                    if worker.slot == 0 and worker.state == "READY":
                        os.kill(worker.pid, signal.SIGKILL)
                return super().step(0.05)
        try:
            with Master(app.handler, workers=2, fail_fast=True, drain_timeout=5, **options) as master:
                master.run()
        except pyfanout.WorkerError as error:
            print(error, type(error).exit_code)
            raise SystemExit(error.exit_code)
        """,
        code=3,
    )
    assert "has died 6 times in a row" in out


def test_leaving_it_stops_everything(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=2, **options) as master:
            until_ready(master)
            pids = [worker.pid for worker in master.workers]
            port = int(master.addresses[0].rsplit(":", 1)[1])
        for pid in pids:
            assert not os.path.exists(f"/proc/{pid}"), pid
        with pyfanout.Master("app:handler", bind=f"127.0.0.1:{port}", workers=1, log_level="critical") as master:
            assert ask(master) not in pids
        """,
    )


def test_it_has_to_be_entered_once(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import contextlib

        def refused(call, words):
            try:
                call()
            except RuntimeError as error:
                assert words in str(error), error
            else:
                raise AssertionError(f"{call} is not refused")

        master = pyfanout.Master("app:handler", workers=1, **options)
        assert master.addresses == []
        for call in (master.run, master.step, master.stop, master.reload, master.fileno, lambda: master.scale(2),
                     lambda: master.workers):
            refused(call, "has not been entered: `with Master")
        with master:
            refused(master.__enter__, "has been entered already")
            until_ready(master)
            pid = ask(master)
        refused(master.__enter__, "has been entered already")
        assert not master.step(0)
        """,
    )


def test_arguments_that_are_wrong_are_refused_at_once(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        import functools

        with pyfanout.Master("app:handler", workers=1, **options) as master:
            wrong = [functools.partial(master.scale, number) for number in (0, 2.5, True, None)]
            for call in (*wrong, lambda: master.on("exit", None), lambda: master.on("exits", print)):
                try:
                    call()
                except pyfanout.ConfigError as error:
                    print(error)
            until_ready(master)
            assert len(master.workers) == 1
            master.on("ready", lambda notice: master.stop())
            master.scale(2, wait=False)
            while master.step(float("inf")):
                pass
        """,
    )
    assert out.splitlines() == [
        'workers: 0 is not a number from 1 to 1024 or "auto"',
        'workers: 2.5 is not a number from 1 to 1024 or "auto"',
        'workers: True is not a number from 1 to 1024 or "auto"',
        'workers: None is not a number from 1 to 1024 or "auto"',
        "on 'exit': None is not a function of one argument, the notice",
        "no event is named 'exits': fork, ready, drain, exit, hang, reload, give_up, pause",
    ]


@pytest.mark.parametrize("wrong", ["Master('app')", "Master(3)", "Master('app:handler', wrokers=2)"])
def test_a_bad_argument_is_one_line(tmp_path: Path, wrong: str) -> None:
    out = run(
        tmp_path,
        f"""
        try:
            pyfanout.{wrong}
        except pyfanout.ConfigError as error:
            print(error)
        """,
    )
    assert out.count("\n") == 1
