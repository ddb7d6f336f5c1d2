"""Workers that somebody else forks: they join, serve, leave and die as they like; the dispatcher only looks on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ask_plain, is_over, kill, session_of, wait_until
from master_script import run

EXAMPLE = Path(__file__).parents[2] / "examples/own_workers.py"

SETUP = """
    def handler(conn, addr):
        line = conn.recv(99)
        if line == b"hold":
            conn.recv(99)
        conn.sendall(b"%d" % os.getpid())

    async def coroutine(reader, writer):
        if await reader.read(99) == b"hold":
            await reader.read(99)
        writer.write(b"%d" % os.getpid())
        await writer.drain()

    def connect(dispatcher, line=b"x"):
        host, port = dispatcher.addresses[0].rsplit(":", 1)
        client = socket.create_connection((host, int(port)), 20)
        client.sendall(line)
        return client

    def answer(client):
        with client:
            return int(client.recv(99))

    def ask(dispatcher):
        return answer(connect(dispatcher))

    def fork(dispatcher, serve):
        '''A worker; it has joined when this returns.'''
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            code = 70
            try:
                told = lambda worker: os.write(writing, b"!")
                dispatcher.config = replace(dispatcher.config, on_worker_start=told)
                code = serve(dispatcher)
            finally:
                os._exit(code)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        return pid

    def fork_blocking(dispatcher):
        return fork(dispatcher, lambda dispatcher: dispatcher.serve(handler))

    def fork_asyncio(dispatcher):
        return fork(dispatcher, lambda dispatcher: dispatcher.serve(coroutine))

    def selecting(listener):
        select.select([listener], [], [], 0.05)

    def accepting(dispatcher, wait=selecting, handler=handler):
        '''What a program does that has its own server loop; and how it hears that it shall end.'''
        worker = dispatcher.join()
        listener = worker.listener()
        ending = []
        worker.on_drain = lambda: (listener.quiet(), ending.append(True))
        signal.signal(signal.SIGTERM, lambda *_: worker.retire())
        worker.ready()
        worker.call_hook(worker.config.on_worker_start)
        while not ending or listener.pending:
            wait(listener)
            try:
                conn, addr = listener.accept()
            except BlockingIOError:
                continue
            with conn:
                handler(conn, addr)
        return 7

    def ended(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def soon(condition, what):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.005)

    import select
    from dataclasses import replace

    import errno
    from pyfanout.link.messages import ServerStopping, Drain, Ping
    from pyfanout.link import outbox

    def refusing(kind, error, times):
        '''The first messages of this kind are not sent. A descriptor, readable when the last of them was not.'''
        send, fifo = outbox.send, Path("refused").absolute()  # the dispatcher's process keeps no pipe of its owner's
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDWR)

        def refuse(sock, message):
            nonlocal times
            if isinstance(message, kind) and times:
                times -= 1
                if not times:
                    fifo.write_text("!")
                raise OSError(error, os.strerror(error))
            send(sock, message)

        outbox.send = refuse
        return reading
"""


def run_with_workers(folder: Path, body: str) -> str:
    return run(folder, textwrap.dedent(SETUP) + textwrap.dedent(body))


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_workers_join_serve_and_are_replaced(tmp_path: Path, kind: str) -> None:
    run_with_workers(
        tmp_path,
        """
            with pyfanout.Dispatcher(**options) as dispatcher:
                waiting = connect(dispatcher)  # before there is anybody
                workers = [fork_KIND(dispatcher) for _ in range(3)]
                assert answer(waiting) in workers
                soon(lambda: ask(dispatcher) == workers[0], "each has a turn")
                soon(lambda: ask(dispatcher) == workers[1], "each has a turn")
                soon(lambda: ask(dispatcher) == workers[2], "each has a turn")
                os.kill(workers[0], signal.SIGKILL)
                assert ended(workers[0]) == -9
                assert workers[0] not in {ask(dispatcher) for _ in range(12)}
                workers[0] = fork_KIND(dispatcher)
                soon(lambda: ask(dispatcher) == workers[0], "the new one has a turn")
                os.kill(workers[1], signal.SIGTERM)  # it drains
                assert ended(workers[1]) == 0
                assert workers[1] not in {ask(dispatcher) for _ in range(12)}
            assert [ended(workers[0]), ended(workers[2])] == [0, 0]
            """.replace("KIND", kind),
    )


def test_one_that_cannot_begin_keeps_nothing(tmp_path: Path) -> None:
    """The last descriptor that it needs is refused."""
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(**options) as dispatcher:
            pid = os.fork()
            if pid == 0:
                before = set(os.listdir("/proc/self/fd"))
                def refuse(*_):
                    raise OSError(24, "Too many open files")
                os.eventfd = refuse
                try:
                    dispatcher.join()
                except OSError:
                    os._exit(len(set(os.listdir("/proc/self/fd")) - before))
                finally:
                    os._exit(99)
            assert ended(pid) == 0
            worker = fork_blocking(dispatcher)
            assert ask(dispatcher) == worker
        assert ended(worker) == 0
        """,
    )


def test_many_come_and_go_and_nothing_is_left(tmp_path: Path) -> None:
    """Places, descriptors and the turns of those that stay."""
    run_with_workers(
        tmp_path,
        """
        def held(pid):
            found = []
            for path in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    found.append(os.readlink(path).split(":")[0])
                except FileNotFoundError:  # that of the listing
                    pass
            return sorted(found)

        with pyfanout.Dispatcher(**options) as dispatcher:
            stays = fork_asyncio(dispatcher)
            ask(dispatcher)
            before, ours = held(dispatcher.pid), held(os.getpid())
            for turn in range(60):
                made = (fork_asyncio if turn % 2 else fork_blocking)(dispatcher)
                soon(lambda: ask(dispatcher) == made, "it serves")
                os.kill(made, signal.SIGKILL if turn % 3 else signal.SIGTERM)
                ended(made)
                assert {ask(dispatcher) for _ in range(3)} == {stays}
            # Less by one if it had not closed its copy of what it had passed on.
            soon(lambda: len(held(dispatcher.pid)) <= len(before), (before, held(dispatcher.pid)))
            assert held(os.getpid()) == ours
        ended(stays)
        """,
    )


def test_nothing_is_lost_when_workers_die_under_load(tmp_path: Path) -> None:
    """But for what a killed one had begun."""
    run_with_workers(
        tmp_path,
        """
        import random, threading
        rng = random.Random(5)
        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork_asyncio(dispatcher), fork_asyncio(dispatcher), fork_blocking(dispatcher)]
            answers, lost, over = [], [], threading.Event()

            def ask_on():
                while not over.is_set():
                    try:
                        answers.append(ask(dispatcher))
                    except (OSError, ValueError) as error:
                        lost.append(error)

            threads = [threading.Thread(target=ask_on) for _ in range(8)]
            for thread in threads:
                thread.start()
            for _ in range(20):
                many = len(answers)
                soon(lambda: len(answers) > many + 20, "answers")
                number = rng.randrange(3)
                os.kill(workers[number], signal.SIGKILL)
                ended(workers[number])
                workers[number] = (fork_asyncio if number < 2 else fork_blocking)(dispatcher)
            over.set()
            for thread in threads:
                thread.join()
        assert len(lost) <= 20 * 8, lost  # the clients are eight
        print(len(answers), "answers,", len(lost), "lost")
        for pid in workers:
            ended(pid)
        """,
    )


def test_stop_serves_what_is_queued(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        for fork_one in (fork_blocking, fork_asyncio):
            dispatcher = pyfanout.Dispatcher(**options)
            with dispatcher:
                pid = fork_one(dispatcher)
                held = connect(dispatcher, b"hold")
                queued = [connect(dispatcher) for _ in range(100)]
                dispatcher.stop()
                held.sendall(b"on")
                assert {answer(client) for client in [held, *queued]} == {pid}
            assert ended(pid) == 0
            try:
                connect(dispatcher)
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError("it listens on")
        """,
    )


def test_a_stop_needs_no_room_in_the_join_socket(tmp_path: Path) -> None:
    """Whoever has filled it, and whoever holds it open, the word reaches a dispatcher that was slow to read."""
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(**options) as dispatcher:
            pid = fork_asyncio(dispatcher)
            holder = os.fork()
            if holder == 0:
                signal.pause()
            os.kill(dispatcher.pid, signal.SIGSTOP)
            dispatcher._join_socket.settimeout(0.1)
            try:
                while True:
                    dispatcher._join_socket.send(b"x")
            except TimeoutError:
                dispatcher.stop()
            os.kill(dispatcher.pid, signal.SIGCONT)
            try:
                soon(lambda: not dispatcher.alive, "it ends")
            finally:
                os.kill(holder, signal.SIGKILL)
            assert (ended(pid), ended(holder)) == (0, -9)
        """,
    )


def test_a_dispatcher_that_dies_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    """Its workers leave; clients wait in the kernel's queue for those that join the next one."""
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork_blocking(dispatcher), fork_asyncio(dispatcher)]
            first = dispatcher.pid
            assert dispatcher.alive
            os.kill(first, signal.SIGKILL)
            assert [ended(pid) for pid in workers] == [0, 0]
            soon(lambda: not dispatcher.alive, "all that it had is closed, one after the other")
            waiting = connect(dispatcher)
            dispatcher.start()
            dispatcher.start()
            assert dispatcher.alive and dispatcher.pid != first
            pid = fork_blocking(dispatcher)
            assert answer(waiting) == pid
        assert ended(pid) == 0
        """,
    )


def test_an_own_loop_with_a_listener(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(policy="least-connections", **options) as dispatcher:
            workers = [fork(dispatcher, accepting) for _ in range(2)]
            soon(lambda: ask(dispatcher) == workers[0], "each has a turn")
            soon(lambda: ask(dispatcher) == workers[1], "each has a turn")
        assert [ended(pid) for pid in workers] == [7, 7]
        """,
    )


def test_who_has_left_out_to_answer_is_left_out(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(ping_interval=0.05, ping_timeout=0.2, **options) as dispatcher:
            first, second = fork_asyncio(dispatcher), fork_asyncio(dispatcher)
            soon(lambda: ask(dispatcher) == second, "ready")
            os.kill(first, signal.SIGSTOP)
            queued = [connect(dispatcher) for _ in range(20)]
            assert {answer(client) for client in queued} == {second}
            os.kill(first, signal.SIGCONT)
            soon(lambda: ask(dispatcher) == first, "it is back")
        ended(first), ended(second)
        """,
    )


def test_one_that_always_finds_a_connection_still_answers_pings(tmp_path: Path) -> None:
    """It accepts once each time its loop comes round, and there is always one. Each client is told how many pings were
    answered when it was accepted."""
    run_with_workers(
        tmp_path,
        """
        from pyfanout.link.messages import Pong
        from pyfanout.worker.worker import WorkerProcess

        pongs, send = [], WorkerProcess.send

        def sending(worker, message):
            pongs.extend([message] * isinstance(message, Pong))
            send(worker, message)

        def come_round(listener):
            time.sleep(0.01)  # pings come meanwhile
            pongs.clear()

        def tell(conn, addr):
            conn.recv(99)
            conn.sendall(b"%d" % len(pongs))

        WorkerProcess.send = sending
        with pyfanout.Dispatcher(ping_interval=0.05, ping_timeout=60, **options) as dispatcher:
            pid = fork(dispatcher, lambda dispatcher: accepting(dispatcher, wait=come_round, handler=tell))
            assert sum(answer(client) for client in [connect(dispatcher) for _ in range(250)]) > 1
        ended(pid)
        """,
    )


@pytest.mark.parametrize("stops", [False, True])
def test_who_retires_serves_on_until_others_have_its_connections(tmp_path: Path, stops: bool) -> None:
    """All of them at once, if the dispatcher has stopped: then there are no others."""
    run_with_workers(
        tmp_path,
        f"""
        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork(dispatcher, accepting) for _ in range(2)]
            soon(lambda: ask(dispatcher) == workers[1], "ready")
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            clients = [connect(dispatcher) for _ in range(40)]
            if {stops}:
                dispatcher.stop()
            for pid in workers if {stops} else workers[:1]:
                os.kill(pid, signal.SIGTERM)
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            assert {{answer(client) for client in clients}} <= set(workers)
            assert ended(workers[0]) == 7
            if not {stops}:
                assert {{ask(dispatcher) for _ in range(5)}} == {{workers[1]}}
        assert ended(workers[1]) == 7
        """,
    )


def test_a_listener_at_max_connections_tells_when_it_has_room(tmp_path: Path) -> None:
    """No ping wakes the dispatcher, which has nobody else to give them to."""
    run_with_workers(
        tmp_path,
        """
        with pyfanout.Dispatcher(max_connections=1, ping_interval=0, **options) as dispatcher:
            pid = fork(dispatcher, accepting)
            clients = [connect(dispatcher, b"") for _ in range(4)]
            for client in clients:
                client.sendall(b"x")
                assert answer(client) == pid
        ended(pid)
        """,
    )


def test_headers_of_a_proxy_that_come_together_late(tmp_path: Path) -> None:
    """The listener hands out one connection at a time; each of the others is found, too."""
    run_with_workers(
        tmp_path,
        """
        def who(conn, addr):
            conn.sendall(addr[0].split(".")[-1].encode())

        with pyfanout.Dispatcher(proxy_protocol=True, ping_interval=0, **options) as dispatcher:
            pid = fork(dispatcher, lambda dispatcher: accepting(dispatcher, handler=who))
            clients = [connect(dispatcher, b"") for _ in range(5)]
            probe = connect(dispatcher, b"PROXY TCP4 9.9.9.9 1.1.1.1 1 2\\r\\n")
            assert answer(probe) == 9  # it has taken the others, and waits for what they say
            for number, client in enumerate(clients):
                client.sendall(b"PROXY TCP4 9.9.9.%d 1.1.1.1 1 2\\r\\n" % number)
            assert [answer(client) for client in clients] == [0, 1, 2, 3, 4]
        ended(pid)
        """,
    )


# ---- several, and children -------------------------------------------------------------------------------------------


def test_nobody_holds_what_is_another_dispatchers(tmp_path: Path) -> None:
    """A port is closed with its dispatcher, whoever else the program has forked."""
    run_with_workers(
        tmp_path,
        """
        first, second = pyfanout.Dispatcher(**options), pyfanout.Dispatcher(**options)
        with second:
            with first:
                early = fork_blocking(second)
                second.close()
                ended(early)
                second.start()
                workers = [fork_blocking(first), fork_asyncio(second)]
                assert [ask(first), ask(second)] == workers
            assert ended(workers[0]) == 0
            try:
                connect(first).close()
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError("somebody listens")
            assert ask(second) == workers[1]
        assert ended(workers[1]) == 0
        """,
    )


def test_a_program_that_a_worker_executes_inherits_nothing(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        def look(dispatcher):
            dispatcher.join()
            return sum(map(is_inherited, range(3, 100)))

        def is_inherited(fd):
            try:
                return os.get_inheritable(fd)
            except OSError:
                return False

        with pyfanout.Dispatcher(**options) as dispatcher:
            assert ended(fork(dispatcher, look)) == 0
        """,
    )


# ---- bad workers -----------------------------------------------------------------------------------------------------


def test_nonsense_on_the_join_socket_and_on_the_control_socket(tmp_path: Path) -> None:
    """Whoever does that gets nothing, and the others notice nothing."""
    run_with_workers(
        tmp_path,
        r"""
        from pyfanout.dispatcher import joining
        with pyfanout.Dispatcher(**options) as dispatcher:
            pid = fork_asyncio(dispatcher)
            join_socket = dispatcher._join_socket
            held = lambda: len(os.listdir(f"/proc/{dispatcher.pid}/fd"))
            soon(lambda: ask(dispatcher) == pid, "ready")
            before = held()
            with open("/dev/null") as null:
                for packet in (b"J", b"X", b"JJ", b"\0" * 500):
                    join_socket.send(packet)
                    socket.send_fds(join_socket, [packet], [null.fileno()] * 3)
            for said in (b"", b"R", b"Rxxxxxxxxxxxxx", b"R\1\0\0", b"A\0\0\0\1", b"F\1nonsense", b"Z" * 40000):
                rude = joining.join(join_socket)
                for _ in range(5):
                    try:
                        rude.control.send(said)
                    except BrokenPipeError:
                        break
                rude.control.close()
                os.close(rude.ends.pool_fd)
                os.close(rude.ends.seat_fd)
            gone = joining.join(join_socket)
            socket.socket(fileno=gone.ends.seat_fd).shutdown(socket.SHUT_RDWR)
            socket.socket(fileno=os.dup(gone.ends.pool_fd)).shutdown(socket.SHUT_RDWR)
            gone.control.send(b"R\0\0\0")
            gone.control.close()
            os.close(gone.ends.pool_fd)
            assert {ask(dispatcher) for _ in range(20)} == {pid}
            soon(lambda: held() <= before, "all that came is closed")
            late = fork_blocking(dispatcher)
            soon(lambda: ask(dispatcher) == late, "who joins later has a pool that works")
        ended(pid), ended(late)
        """,
    )


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        def refused(call):
            try:
                call()
            except pyfanout.FanoutError as error:
                return str(error)
            raise AssertionError("accepted")

        assert refused(lambda: pyfanout.Dispatcher(workers=2)) == (
            "workers: a Dispatcher forks no workers; the program that does decides that")
        for name in ("boot_timeout", "core_dumps", "max_requests", "min_uptime", "pidfile", "ready_fd", "workers"):
            variable = f"PYFANOUT_{name.upper()}"
            os.environ[variable] = " "  # as good as none
            pyfanout.Dispatcher()
            os.environ[variable] = "rubbish"
            assert refused(pyfanout.Dispatcher).startswith(f"{variable}: a Dispatcher forks no workers"), name
            del os.environ[variable]
        for number in ("0", "rubbish"):
            os.environ["WEB_CONCURRENCY"] = number
            pyfanout.Dispatcher()  # the program's affair
        assert "bind" in refused(lambda: pyfanout.Dispatcher(bind=3))
        dispatcher = pyfanout.Dispatcher(**options)
        words = "join is for a process that was forked after start, and has not joined"
        assert refused(dispatcher.join) == words
        with dispatcher:
            assert refused(dispatcher.join) == words

            def late(dispatcher):
                os.kill(dispatcher.pid, signal.SIGKILL)
                soon(lambda: not dispatcher.alive, "dead")
                assert refused(dispatcher.join) == "the dispatcher is gone"
                assert refused(dispatcher.join) == words, "it has let go of what it cannot join"
                return 0

            def too_late(dispatcher):
                reading, writing = os.pipe()
                if os.fork() == 0:
                    os.close(writing)
                    os.read(reading, 1)
                    code = 1
                    try:
                        assert refused(dispatcher.join).startswith("the dispatcher ")
                        code = 0
                    finally:
                        os._exit(code)
                dispatcher.stop()
                os.close(writing)
                assert os.waitstatus_to_exitcode(os.wait()[1]) == 0

            def twice(dispatcher):
                dispatcher.join()
                assert refused(dispatcher.join) == words
                return 0

            assert ended(fork(dispatcher, twice)) == 0
            assert ended(fork(dispatcher, late)) == 0
        dispatcher.close()
        with pyfanout.Dispatcher(**options) as stopped:
            too_late(stopped)
        with pyfanout.Dispatcher(**options) as busy:
            pid = fork_blocking(busy)
            client = connect(busy, b"hold")
            busy.stop()
            assert refused(busy.start) == "the dispatcher is stopping; close it before it is started again"
            client.sendall(b"x")
            assert answer(client) == pid
            ended(pid)
            busy.close()
            busy.start()
            assert busy.alive
        """,
    )


# ---- the example -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shown() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The example, and its port."""
    code = EXAMPLE.read_text().replace("127.0.0.1:8000", "127.0.0.1:0")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            found = next(filter(None, (re.search(r"accepting on .*:(\d+) for", line) for line in lines)))
            yield process, int(found[1])
        finally:
            for pid in session_of(process.pid):
                kill(pid)


def test_the_example_serves_replaces_and_stops() -> None:
    with shown() as (process, port):
        seen = {ask_plain(port) for _ in range(20)}
        assert len(seen) <= 2
        os.kill(first := int(seen.pop().split()[-1]), signal.SIGKILL)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{first} ended with -9\n"
        assert b"Hello from" in ask_plain(port)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log


def test_the_owners_death_is_seen_although_another_child_holds_the_join_socket(tmp_path: Path) -> None:
    run_with_workers(
        tmp_path,
        """
        reading, writing = os.pipe()
        owner = os.fork()
        if owner == 0:
            with pyfanout.Dispatcher(**options) as dispatcher:
                worker = fork_asyncio(dispatcher)
                stays = os.fork()
                if stays == 0:  # is no worker
                    time.sleep(60)
                    os._exit(0)
                os.write(writing, b"%d %d %d" % (stays, dispatcher.pid, worker))
                os.kill(os.getpid(), signal.SIGKILL)
        stays, *pids = map(int, os.read(reading, 99).split())
        os.waitpid(owner, 0)
        gone = lambda pid: not os.path.exists(f"/proc/{pid}") or ") Z " in Path(f"/proc/{pid}/stat").read_text()
        soon(lambda: all(map(gone, pids)), "both are gone")
        os.kill(stays, signal.SIGKILL)
        """,
    )


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_nobody_is_left_when_its_owner_dies(signum: int) -> None:
    with shown() as (process, port):
        ask_plain(port)
        process.send_signal(signum)
        process.wait(20)
        wait_until(lambda: not [pid for pid in session_of(process.pid) if not is_over(pid)], "all are gone")


@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM", "EAGAIN"])
def test_pings_that_cannot_be_sent(tmp_path: Path, error: str) -> None:
    """For far longer than a pong may take: who does not read them is passed over until he answers; that the system has
    no memory for them is nobody's fault."""
    said = run_with_workers(
        tmp_path,
        f"""
        options |= {{"ping_interval": 0.05, "ping_timeout": 0.3, "log_level": "info"}}
        refused = refusing(Ping, errno.{error}, 60)
        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork_asyncio(dispatcher) for _ in range(2)]
            os.read(refused, 1)
            soon(lambda: {{ask(dispatcher) for _ in range(4)}} == set(workers), "both serve")
        for pid in workers:
            assert ended(pid) == 0
        """,
    )
    assert ("it gets no connections until it answers" in said) == (error == "EAGAIN"), said
    assert said.count("answers pings again") == said.count("it gets no connections until it answers"), said


@pytest.mark.parametrize("kind", ["Drain", "ServerStopping"])
def test_a_farewell_that_cannot_be_sent_is_sent_later(tmp_path: Path, kind: str) -> None:
    run_with_workers(
        tmp_path,
        f"""
        refused = refusing({kind}, errno.ENOBUFS, 2)
        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork(dispatcher, accepting) for _ in range(2)]
            soon(lambda: {{ask(dispatcher) for _ in range(4)}} == set(workers), "both serve")
            if {kind} is Drain:
                os.kill(workers[0], signal.SIGTERM)
                assert ended(workers.pop(0)) == 7
        for pid in workers:
            assert ended(pid) == 7
        os.read(refused, 1)
        """,
    )


LOOKING = """
    def links(pid):
        found = {}
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found[int(path.name)] = os.readlink(path)
            except FileNotFoundError:  # that of the listing
                pass
        return found
"""


def test_its_process_keeps_nothing_of_its_owner_s(tmp_path: Path) -> None:
    """The other ends find that the owner has closed, and a lock is free. It keeps what log lines go to, and what a
    library logs with (the journal's socket, which has no name and no peer)."""
    run_with_workers(
        tmp_path,
        textwrap.dedent(LOOKING)
        + textwrap.dedent(
            """
        import fcntl, logging, logging.handlers, multiprocessing, threading

        listening = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listening.getsockname(), 20)
        accepted, _ = listening.accept()
        ours, theirs = socket.socketpair()
        datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        reading, writing = os.pipe()
        locked = open("locked", "w")
        fcntl.flock(locked, fcntl.LOCK_EX)
        unsaved = open("unsaved", "w")
        unsaved.write("once")
        os.dup2(ours.fileno(), 500)
        events, epoll, memory = os.eventfd(0), select.epoll(), os.memfd_create("owner")

        journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        lines, queue = logging.FileHandler("lines"), multiprocessing.Queue()
        log = logging.getLogger("pyfanout")
        log.handlers = [lines, logging.handlers.QueueHandler(queue)]

        options = {**options, "log_level": "info"}
        with pyfanout.Dispatcher(**options) as dispatcher:
            worker = fork_asyncio(dispatcher)
            assert ask(dispatcher) == worker
            kept = links(dispatcher.pid)
            shared = set(kept.values()) & {link for fd, link in links(os.getpid()).items() if fd > 2}
            owned = {link for link in shared if not link.startswith(("anon_inode:", "/dev/"))}
            listener = os.stat(dispatcher._endpoints[0].sock.fileno()).st_ino
            pipes = [f"pipe:[{os.fstat(each.fileno()).st_ino}]" for each in (queue._reader, queue._writer)]
            sockets = [f"socket:[{os.fstat(journal.fileno()).st_ino}]", f"socket:[{listener}]"]
            assert owned == {str(Path("lines").absolute()), *pipes, *sockets}, owned
            assert "anon_inode:[eventfd]" not in kept.values() and 500 not in kept
            os.kill(worker, signal.SIGKILL)  # it has copies, too, which are its owner's affair
            ended(worker)

            for each in (accepted, ours, datagrams[0], locked):
                each.close()
            os.close(writing)
            os.close(500)
            assert client.recv(1) == theirs.recv(1) == os.read(reading, 1) == b""
            try:
                datagrams[1].send(b"x")
                assert False, "its other end is open"
            except ConnectionRefusedError:
                pass
            with open("locked") as free:
                fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
            port = listening.getsockname()
            listening.close()
            try:
                socket.create_connection(port, 20).close()
                assert False, "somebody listens"
            except ConnectionRefusedError:
                pass
            soon(lambda: "accepting on 127.0.0.1:" in Path("lines").read_text(), "its lines")
            assert "accepting on 127.0.0.1:" in queue.get(timeout=20).getMessage()
        unsaved.close()
        assert Path("unsaved").read_text() == "once"
        for each in (client, theirs, datagrams[1], journal, epoll, lines, queue):
            each.close()
        queue.join_thread()
        for fd in (reading, events, memory):
            os.close(fd)
        """
        ),
    )


def test_its_process_does_not_run_its_owner_s_code(tmp_path: Path) -> None:
    """No finalizer, when it drops the owner's handlers of signals, nor a flush of the standard streams."""
    out = run_with_workers(
        tmp_path,
        """
        owner = os.getpid()

        class Stream:
            def write(self, text):
                return len(text)

            def flush(self):
                if os.getpid() != owner:
                    os.write(2, b"flushed")

        class Handler:
            def __call__(self, *_):
                pass

            def __del__(self):
                if os.getpid() != owner:
                    os.write(2, b"finalized")

        sys.stdout = Stream()
        signal.signal(signal.SIGUSR1, Handler())
        signal.signal(signal.SIGALRM, Handler())
        with pyfanout.Dispatcher(**options) as dispatcher:
            pass
        assert not dispatcher.alive
        sys.stdout = sys.__stdout__
        """,
    )
    assert "ed" not in out


def test_descriptors_are_closed_where_neither_proc_nor_close_range_helps(tmp_path: Path) -> None:
    """As in a sandbox."""
    run(
        tmp_path,
        textwrap.dedent(LOOKING)
        + textwrap.dedent(
            """
            import resource
            from pyfanout import descriptors

            def refused(*_):
                raise PermissionError

            def one_by_one(low, high):
                for fd in range(low, high):
                    try:
                        os.close(fd)
                    except OSError:
                        pass

            resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            listdir, closerange = os.listdir, os.closerange
            for os.listdir, os.closerange in ((listdir, closerange), (listdir, one_by_one), (refused, one_by_one)):
                pipes = [os.pipe() for _ in range(20)]
                reading, writing = pipes[7]
                if (pid := os.fork()) == 0:
                    descriptors.close_all_but([reading, pipes[3][1]])
                    os.listdir = listdir
                    os._exit(0 if set(links("self")) == {0, 1, 2, reading, pipes[3][1]} else 1)
                assert os.waitpid(pid, 0)[1] == 0
                for pair in pipes:
                    for fd in pair:
                        os.close(fd)
            """
        ),
    )
