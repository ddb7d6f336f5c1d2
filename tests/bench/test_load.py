"""The load generator counts and times what really happened, checked against servers that are known."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import loadgen

ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n7\n"  # wrk wants to know the length
RUN_LIMIT_S = 30.0

Respond = Callable[[socket.socket, bytes], None]


class Server:
    """Serves connections one after the other in a thread. `respond` decides what each gets."""

    def __init__(self, respond: Respond) -> None:
        self.requests: list[bytes] = []
        self.hosts: set[str] = set()
        self.respond = respond
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept with an error
        self.thread.join(RUN_LIMIT_S)
        self.listener.close()
        assert not self.thread.is_alive(), "the test's own server did not stop"

    def _run(self) -> None:
        while True:
            try:
                conn, addr = self.listener.accept()
            except OSError:
                return
            with conn, contextlib.suppress(ConnectionError):
                conn.settimeout(RUN_LIMIT_S)
                request = conn.recv(4096)
                self.requests.append(request)
                self.hosts.add(addr[0])
                self.respond(conn, request)


def answer(conn: socket.socket, _request: bytes) -> None:
    conn.sendall(ANSWER)


def say(data: bytes) -> Respond:
    return lambda conn, _request: conn.sendall(data)


def reset(conn: socket.socket, _request: bytes) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def until_client_leaves(conn: socket.socket, _request: bytes) -> None:
    with contextlib.suppress(ConnectionResetError):
        conn.recv(1)


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh build of load.c, so that a stale bench/load cannot pass."""
    return loadgen.build(tmp_path_factory.mktemp("load") / "load")


Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(binary: Path) -> Load:
    def run(port: int, *arguments: str | float) -> dict[str, Any]:
        # Where there is a count, all of them shall come: by default no more start after 5 s, however busy the machine.
        command = [str(binary), "--duration", str(RUN_LIMIT_S), *map(str, arguments), f"127.0.0.1:{port}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=RUN_LIMIT_S)
        result: dict[str, Any] = json.loads(done.stdout)
        assert result["started"] == result["answered"] + result["errors_total"], "nothing is dropped silently"
        assert result["errors_total"] == sum(result["errors"].values())
        assert sum(result["workers"].values()) >= result["answered"]
        return result

    return run


def errors(result: dict[str, Any]) -> dict[str, int]:
    return {kind: count for kind, count in result["errors"].items() if count}


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, so that nobody else gets it, but not listened to."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# ---- counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--closed", 8, "--count", 200),
        ("--count", 200),
        ("--rate", 2000, "--count", 200),
    ],
    ids=["closed", "one-by-one", "poisson"],
)
def test_counts_are_exact(load: Load, arguments: tuple[str | float, ...]) -> None:
    with Server(answer) as server:
        result = load(server.port, *arguments)
    assert errors(result) == {}
    assert result["workers"] == {"7": 200}
    assert result["latency_ns"]["fast"]["count"] == len(server.requests) == 200
    assert set(server.requests) == {b"GET /fast HTTP/1.0\r\n\r\n"}


def test_client_addresses_go_round(load: Load) -> None:
    with Server(answer) as server:
        load(server.port, "--count", 100)
    assert server.hosts == {f"127.64.0.{i}" for i in range(1, 65)}


def test_duration_bounds_a_run_and_warmup_is_not_timed(load: Load) -> None:
    with Server(answer) as server:
        result = load(server.port, "--closed", 2, "--warmup", 0.2, "--duration", 0.2)
    assert errors(result) == {}
    assert result["window_s"] == pytest.approx(0.2)
    assert 0 < result["latency_ns"]["fast"]["count"] < result["answered"]
    assert 0 < result["answers_in_window"] < result["answered"]
    assert result["answers_per_s"] == pytest.approx(result["answers_in_window"] / result["window_s"], rel=1e-3)


def test_slow_requests_are_seeded_and_kept_apart(load: Load) -> None:
    def run(seed: int) -> list[bytes]:
        with Server(answer) as server:
            result = load(server.port, "--count", 200, "--slow-fraction", 0.3, "--path", "work", "--seed", seed)
        slow = server.requests.count(b"GET /slow HTTP/1.0\r\n\r\n")
        assert result["latency_ns"]["slow"]["count"] == slow
        assert result["latency_ns"]["fast"]["count"] == server.requests.count(b"GET /work HTTP/1.0\r\n\r\n")
        assert 30 <= slow <= 90  # 60 expected, standard deviation 6.5
        return server.requests

    assert run(1) == run(1) != run(2)


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("respond", "kind"),
    [
        (reset, "reset"),
        (say(b""), "short"),
        (say(b"HTTP/1.0 200 OK\r\n"), "short"),
        (say(b"HTTP/1.0 200 OK\r\n\r\n"), "short"),
        (say(b"HTTP/1.0 200 OK\r\n\r\n12"), "short"),
        (say(b"HTTP/1.0 500 Oh\r\n\r\n7\n"), "wrong"),
        (say(b"HTTP/1.0 200 OK\r\n\r\nseven\n"), "wrong"),
        (say(b"HTTP/1.0 200 OK\r\n\r\n" + b"1" * 2000 + b"\n"), "wrong"),
    ],
    ids=["reset", "nothing", "half-head", "no-body", "half-body", "status", "no-number", "too-long"],
)
def test_failures_are_counted_by_kind(load: Load, respond: Respond, kind: str) -> None:
    with Server(respond) as server:
        result = load(server.port, "--closed", 4, "--count", 20)
    assert errors(result) == {kind: 20}
    assert result["answered"] == 0
    assert result["latency_ns"]["fast"]["count"] == 0


def test_refused_is_counted(load: Load, closed_port: int) -> None:
    assert errors(load(closed_port, "--closed", 4, "--count", 20)) == {"refused": 20}
    assert errors(load(closed_port, "--rate", 1000, "--count", 20)) == {"refused": 20}


def test_timeout_is_counted_and_the_client_leaves(load: Load) -> None:
    with Server(until_client_leaves) as server:
        result = load(server.port, "--closed", 3, "--count", 6, "--timeout", 0.15)
    assert errors(result) == {"timeout": 6}
    assert result["self"]["wall_s"] < 5


def test_arrivals_beyond_max_open_are_errors(load: Load) -> None:
    with Server(until_client_leaves) as server:
        result = load(server.port, "--rate", 1000, "--count", 50, "--max-open", 10, "--timeout", 0.3)
    assert errors(result) == {"timeout": 10, "overflow": 40}


@pytest.mark.parametrize(
    "target", ["192.0.2.1:80", "128.0.0.1:80", "localhost:80", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:80"]
)
def test_only_loopback_can_be_asked(binary: Path, target: str) -> None:
    done = subprocess.run([str(binary), target], capture_output=True, text=True, check=False, timeout=5)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("load: ")
    assert done.stderr.count("\n") == 1


# ---- times -----------------------------------------------------------------------------------------------


def test_a_stall_is_charged_to_everyone_who_waited(load: Load) -> None:
    """Coordinated omission: one stall of 300 ms at 500/s delays about 150 requests, not one."""

    def run(*arguments: str | float) -> dict[str, Any]:
        served = 0

        def stall_once(conn: socket.socket, _request: bytes) -> None:
            nonlocal served
            served += 1
            if served == 100:
                time.sleep(0.3)
            conn.sendall(ANSWER)

        with Server(stall_once) as server:
            result = load(server.port, "--count", 500, *arguments)
        assert errors(result) == {}
        latency: dict[str, Any] = result["latency_ns"]["fast"]
        return latency

    open_loop = run("--rate", 500)
    assert open_loop["max"] >= 290e6
    assert open_loop["p99"] >= 200e6  # the last 5 of 500 waited 290 ms and more
    assert open_loop["p90"] >= 50e6  # the worst 50 waited 200 ms and more
    closed_loop = run("--closed", 1)
    assert closed_loop["max"] >= 290e6  # one request in 500, and no other, knows of it
    assert closed_loop["p99"] < open_loop["p90"]


def test_latency_is_what_the_server_took(load: Load) -> None:
    def after_20_ms(conn: socket.socket, _request: bytes) -> None:
        time.sleep(0.02)
        conn.sendall(ANSWER)

    with Server(after_20_ms) as server:
        latency = load(server.port, "--count", 10)["latency_ns"]["fast"]
    assert 19.5e6 <= latency["p50"] <= latency["p90"] <= latency["max"]
    assert latency["p50"] < 200e6


def test_percentiles_are_within_one_percent(binary: Path) -> None:
    chance = random.Random(5)
    for values in (
        [int(chance.lognormvariate(13, 2)) for _ in range(20_000)],  # 0.4 ms, with a tail of seconds
        [chance.randrange(300) for _ in range(1000)],
        [10**3, 10**6, 10**9, 60 * 10**9],
        [42],
    ):
        done = subprocess.run(
            [str(binary), "--histogram"],
            input="\n".join(map(str, values)),
            check=True,
            capture_output=True,
            text=True,
            timeout=5,
        )
        printed = json.loads(done.stdout)["stdin"]
        values.sort()
        for name, thousandths in (("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)):
            exact = values[-(-thousandths * len(values) // 1000) - 1]
            assert printed[name] == pytest.approx(exact, rel=0.01), name
        assert printed["max"] == values[-1]
        assert printed["count"] == len(values)


# ---- holding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--rate", 1000)], ids=["at-once", "at-a-rate"])
def test_hold_keeps_all_open_until_the_last_answer(load: Load, arguments: tuple[str | float, ...]) -> None:
    kept: list[socket.socket] = []

    def keep(conn: socket.socket, _request: bytes) -> None:
        kept.append(conn.dup())
        for early in kept:
            early.setblocking(False)
            with pytest.raises(BlockingIOError):  # the client neither spoke nor left
                early.recv(1)
        conn.sendall(ANSWER)

    with Server(keep) as server:
        try:
            result = load(server.port, "--hold", 40, *arguments)
            assert errors(result) == {}
            assert result["workers"] == {"7": 40}
            assert set(server.requests) == {b"GET /hold HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"}
            assert len(kept) == 40
            for conn in kept:
                conn.settimeout(5)
                assert conn.recv(1) == b"", "the client closes in the end"
        finally:
            for conn in kept:
                conn.close()


def test_a_held_connection_that_is_dropped_is_an_error(load: Load) -> None:
    with Server(answer) as server:  # closes each at once
        result = load(server.port, "--hold", 20, "--rate", 1000)
    assert result["errors"]["short"] >= 19  # the last one may still be open when it is counted
    assert result["answered"] <= 1


# ---- several requests on a connection --------------------------------------------------------------------


def test_requests_follow_each_other_on_a_connection(load: Load) -> None:
    """One answered connection for all of them; the first request is the server's, the others are counted here."""
    more: list[bytes] = []

    def keep(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(ANSWER)
        while request := conn.recv(4096):
            more.append(request)
            conn.sendall(ANSWER)

    with Server(keep) as server:
        result = load(server.port, "--closed", 3, "--count", 10, "--requests", 5)
        assert errors(result) == {}
        assert (result["started"], result["answered"]) == (10, 10)
        assert len(server.requests) == 10
        assert more == [b"GET /keep HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] * 40


def test_a_connection_that_ends_before_its_last_request_is_an_error(load: Load) -> None:
    def twice(conn: socket.socket, _request: bytes) -> None:
        conn.sendall(ANSWER)
        if conn.recv(4096):
            conn.sendall(ANSWER)

    with Server(twice) as server:
        result = load(server.port, "--closed", 2, "--count", 6, "--requests", 3)
    assert result["answered"] == 0
    assert sum(errors(result).values()) == 6


# ---- a second opinion ------------------------------------------------------------------------------------


def test_wrk_sees_the_same_server(load: Load) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        pytest.fail("wrk is not installed (apt-get install wrk): the load generator is checked against it")
    with Server(answer) as server:
        ours = load(server.port, "--closed", 8, "--duration", 1)
        served_ours = len(server.requests)
        done = subprocess.run(
            [wrk, "-t", "1", "-c", "8", "-d", "1", f"http://127.0.0.1:{server.port}/fast"],
            check=True,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
        )
        served_wrk = len(server.requests) - served_ours
    assert errors(ours) == {}
    assert ours["answered"] == served_ours
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    found = re.search(r"(\d+) requests in .*?Requests/sec:\s+([\d.]+)", done.stdout, re.DOTALL)
    assert found, done.stdout
    # wrk leaves with up to 8 requests under way, and opens one more connection to look at the address
    assert int(found[1]) <= served_wrk <= int(found[1]) + 9
    ratio = ours["answers_per_s"] / float(found[2])
    print(f"load saw {ours['answers_per_s']:.0f}/s, wrk {float(found[2]):.0f}/s: {ratio:.2f}")
    assert 0.1 < ratio < 10


# ---- its end, and clients that are refused ---------------------------------------------------------------


def test_sigterm_ends_it_and_what_is_under_way_is_finished(binary: Path) -> None:
    def slow(conn: socket.socket, _request: bytes) -> None:
        time.sleep(0.3)
        conn.sendall(ANSWER)

    with Server(slow) as server:
        command = [str(binary), "--closed", "1", "--duration", "20", f"127.0.0.1:{server.port}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(0.1)
        process.terminate()
        printed, _ = process.communicate(timeout=RUN_LIMIT_S)
    result = json.loads(printed)
    assert (process.returncode, result["started"], result["answered"]) == (0, 1, 1)


def test_who_is_refused_in_a_closed_loop_pauses(load: Load, closed_port: int) -> None:
    result = load(closed_port, "--closed", 8, "--duration", 0.5)
    assert 8 <= result["errors"]["refused"] <= 8 * 51
    assert set(errors(result)) == {"refused"}
