"""gunicorn with our dispatcher before its workers: its arbiter forks, reloads, scales and stops as ever."""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server, asking, children_of, close_all, connect, freeze, is_over, kill, read_all, session_of

from bench.server import free_port

from .kit import FOLDER, Client, ask, fill_two_of_three, load, strangers
from .test_servers import assert_it_drains_calmly, assert_no_descriptor_is_left, connections
from .test_threads import asking as threads_asking
from .test_tls_and_proxy import REQUEST, body, certificate, is_closed_while_it_trickles, secure

APPS = {"Sync": "apps:wsgi", "GThread": "apps:wsgi", "ASGI": "apps:asgi"}
LISTENING_AT = re.compile(r"Listening at: https?://(\S+)")


QUICK = {"PYFANOUT_PING_INTERVAL": "0.1", "PYFANOUT_TIMEOUT": "1"}

SLOWLY = """
import asyncio
from pathlib import Path
from apps import asgi as answering

async def asgi(scope, receive, send):
    while scope["type"] == "lifespan" and not Path("go").exists():
        Path("waits").touch()
        await asyncio.sleep(0.01)
    await answering(scope, receive, send)
"""


class Gunicorn(Server):
    """`pid` is the arbiter's."""

    ends_by = signal.SIGTERM  # SIGINT would cut a request short whose answer has just been read

    def serve(
        self, kind: str, *options: str, app: str = "", workers: int = 2, cwd: Path = FOLDER, **variables: str
    ) -> Gunicorn:
        bind = () if any(each.startswith("--config") for each in options) else ("--bind", "127.0.0.1:0")
        worker_class = f"pyfanout.embed.gunicorn.{kind}"
        words = ["--worker-class", worker_class, "--workers", str(workers), *bind]
        script = str(Path(sys.executable).with_name("gunicorn"))  # with -m it cannot execute itself again, for USR2
        command = [sys.executable, "-W", "default", script, *words, "--no-control-socket", *options]
        self.expect(
            r"\[(ERROR|WARNING)\] Worker .pid:\d+. was sent SIG(KILL|QUIT|TERM)",
            "ResourceWarning: (unclosed .* family=2|Enable)",
        )
        self._launch([*command, app or APPS[kind]], cwd, {"PYFANOUT_LOG_LEVEL": "debug", **variables})
        return self

    def ready(self, workers: int = 2) -> Gunicorn:
        """Until so many were ready, in the life of this arbiter."""
        self.wait_log("is ready", workers)
        return self

    @property
    def addresses(self) -> list[str]:
        return self.wait_until(lambda: LISTENING_AT.findall(self.log), "where it listens")[-1:]

    @property
    def dispatcher(self) -> int:
        """The pid of the newest."""
        found = self.wait_until(lambda: re.findall(r"\[(\d+)\] INFO accepting on", self.log), "a dispatcher")
        return int(found[-1])

    @property
    def workers(self) -> list[int]:
        dispatchers = set(map(int, re.findall(r"\[(\d+)\] INFO accepting on", self.log)))
        return [pid for pid in children_of(self.pid) if not is_over(pid) and pid not in dispatchers]


MakeGunicorn = Callable[[], Gunicorn]


@pytest.fixture
def gunicorn(server: Callable[..., Server]) -> MakeGunicorn:
    def make() -> Gunicorn:
        made = server(Gunicorn)
        assert isinstance(made, Gunicorn)
        return made

    return make


@pytest.fixture(params=list(APPS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---- serving ---------------------------------------------------------------------------------------------------------


def test_it_answers_a_thousand_in_turn_and_knows_who_asks(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind, workers=4, PYFANOUT_PING_INTERVAL="0").ready(4)
    turns = []
    for _ in range(40):
        one.wait_idle()
        turns.append(ask(one.address)["pid"])
    counts = collections.Counter(turns)
    # A sync worker goes to the end of their common queue when it gives its sign of life, once a second.
    slack = 3 if kind == "Sync" else 0
    assert set(counts) == set(one.workers)
    assert all(abs(count - 10) <= slack for count in counts.values()), counts
    assert not strangers(one.address)
    assert_no_descriptor_is_left(one, one.workers[0])


def test_no_memory_to_take_a_connection(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn()
    one.expect("ERROR worker=0: Cannot allocate memory; it cannot take a connection, and tries again")
    one.serve(kind, workers=1, PYFANOUT_PING_INTERVAL="0", REFUSE="ENOMEM").ready(1)
    assert [ask(one.address)["pid"]] == one.workers
    one.wait_log("it cannot take a connection, and tries again")


@pytest.mark.parametrize(("kind", "app"), [("GThread", "threads:wsgi"), ("ASGI", "threads:fastapi()")])
def test_threads_that_are_all_stuck(gunicorn: MakeGunicorn, kind: str, app: str) -> None:
    """The arbiter finds them, because the worker no longer notifies it; but not threads that send for a long time.
    Meanwhile other workers get its connections."""
    one = gunicorn()
    one.expect(
        "every thread has been in the same request", "WORKER TIMEOUT", "SIGABRT", "Error handling", "in progress"
    )
    one.serve(kind, "--threads", "4", "--timeout", "2", app=app, workers=1, **QUICK).ready(1)
    (pid,) = one.workers
    with threads_asking(one, "/stream", 4) as answers:
        pass
    assert [answer.count(b"#") for answer in answers] == [2500] * 4
    assert one.workers == [pid]
    with threads_asking(one, "/stick", 4):
        one.wait_log("every thread has been in the same request for .* s .timeout.; it gets no more")
        one.wait_log(rf"WORKER TIMEOUT .pid:{pid}.")
    one.wait_until(lambda: is_over(pid), "it is gone")
    assert ask(one.address)["pid"] != pid


def test_policy_is_a_variable(gunicorn: MakeGunicorn) -> None:
    one = gunicorn().serve("GThread", PYFANOUT_POLICY="least-connections").ready()
    held = [Client(one.address) for _ in range(10)]
    try:
        asked = collections.Counter(client.ask()[0]["pid"] for client in held)
        assert asked == dict.fromkeys(one.workers, 5)
    finally:
        for client in held:
            client.__exit__()


def test_tls(gunicorn: MakeGunicorn, kind: str, tmp_path: Path) -> None:
    certificate(tmp_path, "localhost")
    files = ("--certfile", str(tmp_path / "server.pem"), "--keyfile", str(tmp_path / "server.key"))
    one = gunicorn().serve(kind, *files).ready()
    for _ in range(10):
        with secure(one.address, tmp_path) as sock:
            ours = sock.getsockname()
            sock.sendall(REQUEST)
            assert body(read_all(sock))["client"] == [*ours]
    assert one.stop() == 0


def test_a_handshake_has_its_time(gunicorn: MakeGunicorn, kind: str, tmp_path: Path) -> None:
    certificate(tmp_path, "localhost")
    files = ("--certfile", str(tmp_path / "server.pem"), "--keyfile", str(tmp_path / "server.key"))
    one = gunicorn().serve(kind, *files, workers=1, PYFANOUT_HANDSHAKE_TIMEOUT="0.5").ready(1)
    assert is_closed_while_it_trickles(one.address)
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))


@pytest.mark.parametrize("kind", ["GThread", "ASGI"])
def test_slow_handshakes_keep_nobody_waiting(gunicorn: MakeGunicorn, kind: str, tmp_path: Path) -> None:
    """More of them than GThread has threads. Nor do they delay the worker's exit, although each has a minute."""
    certificate(tmp_path, "localhost")
    files = ("--certfile", str(tmp_path / "server.pem"), "--keyfile", str(tmp_path / "server.key"))
    one = gunicorn().serve(kind, *files, workers=1, PYFANOUT_HANDSHAKE_TIMEOUT="60").ready(1)
    slow = [connect(one.address) for _ in range(45)]
    for number, client in enumerate(slow):
        client.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 6])
    for _ in range(3):
        with secure(one.address, tmp_path) as sock:
            sock.sendall(REQUEST)
            assert body(read_all(sock))
    assert one.stop() == 0
    for client in slow:
        client.close()


# ---- living ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind).ready()
    old = one.workers
    kill(old[0])
    one.ready(3)
    seen: set[int] = set()
    one.wait_until(lambda: seen.add(ask(one.address)["pid"]) or seen >= set(one.workers), "both answer")
    assert old[0] not in seen


def test_what_a_dead_worker_had_not_taken_goes_to_others(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind).ready()
    first, second = one.workers
    freeze(first)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(one.address))) for _ in range(6)]
    for thread in threads:
        thread.start()
    one.wait_until(lambda: len(answers) >= (1 if kind == "Sync" else 3), "those of the living one")
    kill(first)
    for thread in threads:
        thread.join()
    assert len(answers) == 6, one.log
    assert first not in {answer["pid"] for answer in answers}
    assert second in {answer["pid"] for answer in answers}


def test_a_silent_worker_is_left_out_until_it_answers(gunicorn: MakeGunicorn) -> None:
    variables = {"PYFANOUT_PING_INTERVAL": "0.1", "PYFANOUT_PING_TIMEOUT": "0.3"}
    one = gunicorn().serve("GThread", **variables).ready()
    one.expect("no answer to a ping")
    first, second = one.workers
    freeze(first)
    one.wait_log(f"pid={first}: no answer to a ping")
    assert {ask(one.address)["pid"] for _ in range(10)} == {second}
    kill(first, signal.SIGCONT)
    one.wait_log(f"pid={first} answers pings again")
    assert {ask(one.address)["pid"] for _ in range(10)} == {first, second}


def test_reloads_under_load(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind).ready()
    joined = 2
    for keep_alive in (False, True) if kind != "Sync" else (False,):
        old = set(one.workers)
        with load(one.address, keep_alive=keep_alive) as answers:
            one.send(signal.SIGHUP)
            joined += 2
            one.ready(joined)
            one.wait_until(lambda old=old: not old & set(one.workers), "the old ones have left", 40)
            one.wait_until(lambda old=old: answers[-1]["pid"] not in old, "new answers")
    assert one.stop() == 0


def test_scaling(gunicorn: MakeGunicorn) -> None:
    one = gunicorn().serve("GThread", workers=1).ready(1)
    with load(one.address):
        one.send(signal.SIGTTIN)
        one.ready(2)
        one.wait_workers(2)
        one.send(signal.SIGTTOU)
        one.wait_workers(1)
    assert one.stop() == 0


def test_max_requests(gunicorn: MakeGunicorn, kind: str) -> None:
    """A worker that has had them leaves, by gunicorn's own rule, which counts requests."""
    one = gunicorn().serve(kind, "--max-requests", "20", workers=2).ready()
    seen: set[int] = set()
    with Client(one.address) as client:  # on a connection that is kept, if the worker keeps it
        one.wait_until(lambda: seen.add(client.ask()[0]["pid"]) or len(seen) >= 6, "one after the other")


def test_new_addresses_on_reload(gunicorn: MakeGunicorn, tmp_path: Path) -> None:
    config = tmp_path / "conf.py"
    first, second = free_port(), free_port()
    config.write_text(f"bind = '127.0.0.1:{first}'")
    # Compiled, a file of the same second and size would be taken for the old one.
    one = gunicorn().serve("GThread", "--config", str(config), PYTHONDONTWRITEBYTECODE="1").ready()
    old = one.dispatcher
    assert ask(f"127.0.0.1:{first}")["pid"] in one.workers
    config.write_text(f"bind = '127.0.0.1:{second}'")
    one.send(signal.SIGHUP)
    one.ready(4)
    assert ask(f"127.0.0.1:{second}")["pid"] in one.workers
    one.wait_until(lambda: is_over(old), "the old dispatcher has ended")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first), 5).close()


def test_nobody_comes_to_a_worker_whose_application_starts(gunicorn: MakeGunicorn, tmp_path: Path) -> None:
    """Before its lifespan has begun, it does not accept."""
    (tmp_path / "slowly.py").write_text(SLOWLY)
    go = tmp_path / "go"
    go.touch()
    one = gunicorn().serve("ASGI", workers=1, cwd=tmp_path, PYTHONPATH=str(FOLDER), app="slowly:asgi").ready(1)
    (first,) = one.workers
    go.unlink()
    one.send(signal.SIGTTIN)
    one.wait_until((tmp_path / "waits").exists, "it starts")
    assert {ask(one.address)["pid"] for _ in range(10)} == {first}
    assert one.log.count("is ready") == 1
    go.touch()
    one.ready(2)
    one.wait_until(lambda: ask(one.address)["pid"] != first, "the second serves")


def test_another_arbiter_takes_over_under_load(gunicorn: MakeGunicorn, kind: str, tmp_path: Path) -> None:
    """USR2 starts it, on the same sockets; then the old one is told to stop, and serves what it has accepted."""
    one = gunicorn().serve(kind, "--pid", str(tmp_path / "pid")).ready()
    old = set(one.workers)
    with load(one.address, clients=8) as answers:
        one.send(signal.SIGUSR2)
        one.ready(4)
        new = int((tmp_path / "pid.2").read_text())
        assert one.stop() == 0
        one.wait_until(lambda: answers[-1]["pid"] not in old, "new answers")
    kill(new, signal.SIGTERM)
    one.wait_nobody()


# ---- dying -----------------------------------------------------------------------------------------------------------


def test_a_killed_dispatcher_is_replaced(gunicorn: MakeGunicorn, kind: str) -> None:
    """Its workers leave, and the arbiter, which forks new ones, starts another first. Clients wait in the queue."""
    one = gunicorn().serve(kind).ready()
    old, before = one.dispatcher, one.workers
    kill(old)
    assert ask(one.address)["pid"] not in before
    assert one.dispatcher != old
    one.wait_until(lambda: not set(before) & set(one.workers), "its workers have left", 40)
    one.ready(4)
    assert len(one.wait_workers(2)) == 2


def test_when_the_arbiter_is_killed_all_leave(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind).ready()
    kill(one.pid)
    assert one.wait_exit() == -signal.SIGKILL
    one.wait_until(lambda: not session_of(one.pid), "nobody is left", 20)


def test_a_stop_lets_a_request_finish(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind, workers=1).ready(1)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask(one.address, "/slow")))
    thread.start()
    (worker,) = one.workers
    one.wait_until(lambda: connections(one, worker) == 1, "it is there")
    one.send(signal.SIGTERM)
    thread.join()
    assert answers
    assert one.wait_exit() == 0
    assert "in progress" not in one.log.replace("with 0 connections in progress", "")
    one.wait_nobody()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_requests_are_cut_off_by_a_stop_of_asgi(gunicorn: MakeGunicorn, signum: signal.Signals) -> None:
    """gunicorn itself kills a worker at the end of `graceful_timeout`. It does without the lifespan in a fast stop."""
    one = gunicorn().serve(
        "ASGI", "--config=python:lasting", "--bind=127.0.0.1:0", "--graceful-timeout=3", app="lasting:asgi", workers=1
    )
    one.expect("ResourceWarning: unclosed file")  # gunicorn's own, if it has no time to reap the worker
    one.ready(1)
    clients = [connect(one.address) for _ in range(2)]
    for client, path in zip(clients, ("/last", "/stubborn"), strict=True):
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    one.wait_until(lambda: one.out.count("app: request") == 2, "the requests are under way")
    assert one.stop(signum) == 0
    close_all(clients)
    assert one.log.count("worker=0 stops, with 2 connections in progress") == 1
    assert one.out.count("app: hook\n") == one.out.count("app: atexit\n") == 1
    assert one.out.count("app: clean-up\n") == (signum == signal.SIGTERM)


@pytest.mark.parametrize("tell", [os.kill, os.killpg])
def test_a_stop_serves_all_that_was_accepted(
    gunicorn: MakeGunicorn, kind: str, tell: Callable[[int, int], None]
) -> None:
    """The dispatcher is told before the workers are; else those that wait for a free one would be lost. Or all at once
    are, as systemd does it: then the workers hear of it before their parent says a word."""
    one = gunicorn().serve(kind, workers=2).ready()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(one.address)) for _ in range(6)]
        for client in clients:
            client.begin("/slow", close=True)
        tell(one.pid, signal.SIGTERM)
        workers = {client.end(close=True)["pid"] for client in clients}
        # One that hears of it before its first client came may leave: then the other serves all.
        assert len(workers) == 2 or tell is os.killpg
    assert one.wait_exit() == 0
    one.wait_nobody()


def test_clients_that_come_all_the_time_are_answered_or_refused(gunicorn: MakeGunicorn, kind: str) -> None:
    """There are always some in the queue, and each asks again at once: nobody is reset."""
    one = gunicorn().serve(kind, "--backlog", "32", workers=2).ready()
    address = one.address

    def ask_once(answers: list[Any]) -> None:
        with Client(address) as client:
            answers.append(client.ask(close=True))

    with asking(ask_once, 16, until_refused=True) as answers:
        one.wait_until(lambda: len(answers) >= 200, "answers")
        one.send(signal.SIGTERM)
    assert one.wait_exit() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_hears_a_stop_that_comes_while_it_boots(
    gunicorn: MakeGunicorn, kind: str, signum: signal.Signals, tmp_path: Path
) -> None:
    """After the fork, and before it has handlers of its own."""
    (tmp_path / "conf.py").write_text(
        f"""if True:
        import os, pathlib
        bind = "127.0.0.1:0"
        def post_fork(server, worker):
            if not pathlib.Path({str(tmp_path)!r}, "first").exists():
                pathlib.Path({str(tmp_path)!r}, "first").write_text(str(worker.pid))
                os.kill(worker.pid, {int(signum)})
        """
    )
    one = gunicorn().serve(kind, "--config", str(tmp_path / "conf.py"), workers=1)
    first = int(one.wait_until(lambda: (tmp_path / "first").exists() and (tmp_path / "first").read_text(), "a worker"))
    one.wait_until(lambda: is_over(first), "it has left")
    assert ask(one.address)["pid"] != first


@pytest.mark.parametrize("kind", ["GThread", "ASGI"])
def test_silent_clients_hold_no_stop(gunicorn: MakeGunicorn, kind: str) -> None:
    """A client that has never sent, and one that keeps its connection; under gunicorn's own workers they do. A Sync
    worker that waits for a client does not read its control socket."""
    one = gunicorn().serve(kind, "--graceful-timeout", "60", "--keep-alive", "60", workers=1).ready(1)
    with contextlib.ExitStack() as staying:
        staying.enter_context(client := Client(one.address)).ask()
        assert client.socket is not None
        (pid,) = one.workers
        before = connections(one, pid)
        staying.enter_context(connect(one.address))
        one.wait_until(lambda: connections(one, pid) == before + 1, "it is there")
        one.send(signal.SIGTERM)
        assert one.wait_exit(deadline_s=20) == 0


def test_a_fast_stop_waits_for_nobody(gunicorn: MakeGunicorn, kind: str) -> None:
    one = gunicorn().serve(kind, workers=1).ready(1)
    one.expect("Error handling request", "Traceback")  # gunicorn's own line about the one it cuts short
    with Client(one.address) as held, Client(one.address) as busy:
        if kind != "Sync":  # which would serve it first
            held.ask()
        # Not of gthread: a process waits for its threads, also gunicorn's own, until `graceful_timeout`.
        busy.begin("/slow" if kind == "GThread" else "/long")
        (worker,) = one.workers
        one.wait_until(lambda: connections(one, worker) >= 1, "it is there")
        assert one.stop(signal.SIGINT) == 0
        if kind != "GThread":
            with pytest.raises((ConnectionError, http.client.BadStatusLine, AssertionError)):  # the last: sync says 500
                busy.end()
    one.wait_nobody()


def test_one_at_the_limit_of_connections_keeps_nobody_waiting(gunicorn: MakeGunicorn, tmp_path: Path) -> None:
    config = tmp_path / "config.py"  # else it would end all but one of them after their first answer
    config.write_text("def post_worker_init(worker):\n    worker.max_keepalived = 3\n")
    options = ("--config", str(config), "--worker-connections", "3", "--threads", "2", "--keep-alive", "60")
    one = gunicorn().serve("GThread", *options, workers=2, PYFANOUT_POLICY="round-robin").ready(2)
    fill_two_of_three(one.address)
    one.stop()


def test_a_stop_at_the_limit_of_connections(gunicorn: MakeGunicorn) -> None:
    """A worker that accepts no more finds the end nevertheless, and serves who waits."""
    options = ("--worker-connections", "4", "--threads", "2", "--keep-alive", "60")
    one = gunicorn().serve("GThread", *options, workers=1).ready(1)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(Client(one.address)) for _ in range(4)]
        for client in held:
            client.ask()
        late = [stack.enter_context(Client(one.address)) for _ in range(3)]
        for client in late:
            client.begin()
        one.send(signal.SIGTERM)
        assert all(client.end()["pid"] for client in late)
        assert one.wait_exit() == 0


def test_clients_that_ask_again_are_told_that_it_ends(gunicorn: MakeGunicorn) -> None:
    """However often a worker is told to leave: gunicorn repeats itself until it has as few as it should."""
    one = gunicorn().serve("ASGI", "--keep-alive", "60").ready()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(one.address)) for _ in range(6)]
        held = collections.defaultdict(list)
        for client in clients:
            held[client.ask()[0]["pid"]].append(client)
        one.send(signal.SIGTTOU)

        def told() -> list[int]:
            return [pid for pid, (client, *_) in held.items() if client.ask() and client.socket is None]

        (leaving,) = one.wait_until(told, "one of them says goodbye")
        for client in held[leaving][1:]:
            one.wait_until(lambda client=client: client.ask() and client.socket is None, "the others are told, too")


def test_a_stop_that_the_arbiter_has_queued_is_not_a_workers(gunicorn: MakeGunicorn, tmp_path: Path) -> None:
    """It came in the middle of a reload, before the new workers were forked: they serve until the arbiter has read it,
    which it does when the old ones have left."""
    (tmp_path / "conf.py").write_text(
        """if True:
        import os, signal
        bind = "127.0.0.1:0"
        def on_reload(server):
            os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    one = gunicorn().serve("GThread", "--config", str(tmp_path / "conf.py"), workers=1).ready(1)
    (old,) = one.workers
    with Client(one.address) as busy:
        busy.begin("/slow", close=True)
        one.wait_until(lambda: connections(one, old) == 1, "it is there")
        one.send(signal.SIGHUP)
        one.ready(2)
        assert old not in {ask(one.address)["pid"] for _ in range(20)}
        assert busy.end(close=True)["pid"] == old
    assert one.wait_exit() == 0


def test_a_worker_that_drains_does_not_spin(gunicorn: MakeGunicorn, kind: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    one = gunicorn().serve(kind, workers=1, GO=str(go)).ready(1)
    (pid,) = one.workers
    assert_it_drains_calmly(one, pid, go)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "option", "said"),
    [
        ("GThread", ("--reuse-port",), "reuse_port: the dispatcher alone accepts; turn it off"),
        ("Sync", ("--threads", "2"), "threads: a Sync worker has one; use pyfanout.embed.gunicorn.GThread"),
    ],
)
def test_options_that_cannot_be(gunicorn: MakeGunicorn, kind: str, option: tuple[str, ...], said: str) -> None:
    one = gunicorn().serve(kind, *option)
    one.expect("Error")
    assert one.wait_exit() == 1
    assert f"Error: {said}" in one.log


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("GThread", "POLICY", "fair", "policy: 'fair' (from PYFANOUT_POLICY) is not one of"),
        ("GThread", "CERTFILE", "x.pem", "PYFANOUT_CERTFILE: gunicorn speaks TLS itself; use its --certfile"),
        ("ASGI", "CERTFILE", "x.pem", "PYFANOUT_CERTFILE: gunicorn speaks TLS itself; use its --certfile"),
        ("Sync", "POLICY", "round-robin", "PYFANOUT_POLICY: means nothing to Sync workers, which share one queue"),
        ("Sync", "PROXY_PROTOCOL", "1", "PYFANOUT_PROXY_PROTOCOL: means nothing to Sync workers"),
        ("Sync", "WORKERS", "4", "PYFANOUT_WORKERS: a Dispatcher forks no workers; the program that does decides that"),
    ],
)
def test_a_bad_variable(gunicorn: MakeGunicorn, kind: str, name: str, value: str, said: str) -> None:
    one = gunicorn().serve(kind, **{f"PYFANOUT_{name}": value})
    one.expect("Error")
    assert one.wait_exit() == 1
    assert f"Error: {said}" in one.log


@pytest.mark.parametrize(
    "given",
    [
        ("--backlog=0", "--graceful-timeout=2000000000", "--log-level=loud", "--worker-connections=5000000000"),
        ("--backlog=2147483647", "--graceful-timeout=0", "--log-level=DEBUG", "--worker-connections=2"),
    ],
)
def test_what_is_gunicorns_own_is_as_gunicorn_takes_it(gunicorn: MakeGunicorn, given: tuple[str, ...]) -> None:
    """No workers by the environment, where an option has some; a log level that it does not know; options that the
    dispatcher has from it, at both ends and beyond."""
    one = gunicorn().serve("GThread", *given, WEB_CONCURRENCY="0", PYFANOUT_LOG_LEVEL="")
    one.expect("ResourceWarning: unclosed file")  # gunicorn's own, of workers that it has no time to reap
    one.wait_until(lambda: len(children_of(one.pid)) == 3, "the dispatcher and two workers")
    assert ask(one.address)["pid"] in children_of(one.pid)
    assert one.stop(signal.SIGTERM) == 0


def test_no_workers_until_the_arbiter_is_told(gunicorn: MakeGunicorn) -> None:
    """A gunicorn without workers listens: clients wait for the first one."""
    one = gunicorn().serve("GThread", workers=0, WEB_CONCURRENCY="0")
    with connect(one.address) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        one.send(signal.SIGTTIN)
        assert body(read_all(client))["pid"] in children_of(one.pid)
    assert one.stop(signal.SIGTERM) == 0
