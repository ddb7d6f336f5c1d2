"""Servers under test. `act` and `act_async` do what the client's first line says; `main` is a script that serves.

Each answer is one line of JSON, but for `hold`. What is done is the same for both kinds, as far as it can be.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import importlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable
from http.server import BaseHTTPRequestHandler
from typing import Any

from fault_injection import refuse_to_take

import pyfanout
from pyfanout.link import messages
from pyfanout.worker.serving import inside

HTTP_ANSWER = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"

leaked: list[int] = []
kept: list[Any] = []


def note(text: str) -> None:
    """Into the log, in one piece."""
    os.write(2, f"app: {text}\n".encode())


def identity() -> dict[str, Any]:
    worker = pyfanout.current_worker()
    return {
        "slot": worker and worker.slot,
        "pid": os.getpid(),
        "generation": worker and worker.generation,
        "worker_pid": worker and worker.pid,
        "uid": os.getuid(),
    }


def facts_of(sock: socket.socket) -> dict[str, Any]:
    """What a handler can see of its socket."""
    tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    return {
        "family": sock.family.name if hasattr(sock.family, "name") else str(sock.family),
        "blocking": os.get_blocking(sock.fileno()),
        "timeout": sock.gettimeout(),
        "nodelay": bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) if tcp else None,
        "inheritable": os.get_inheritable(sock.fileno()),
    }


# ---- what both kinds can do; each returns what is answered, or None for nothing ------------------------------------


def do_exit(code: str = "0") -> None:
    sys.exit(int(code))


def do_die(code: str = "0") -> None:
    os._exit(int(code))


def do_kill(signum: str = "SIGKILL") -> None:
    os.kill(os.getpid(), signal.Signals[signum])


def own_sigterm(*_: object) -> None:
    """A handler as applications have them."""
    note(f"SIGTERM in {os.getpid()}")
    sys.exit(3)


def do_own(how: str) -> dict[str, Any]:
    if how == "loop":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own_sigterm)
    else:
        signal.signal(signal.SIGTERM, own_sigterm)
    return identity()


def do_children() -> dict[str, Any]:
    """The signal dispositions of an executed program, and how a child of multiprocessing takes SIGTERM."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigIgn:", "SigBlk:"))]
    mine = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    mine.start()
    mine.terminate()
    mine.join()
    kept = [signum for signum in range(1, 32) if any(mask >> (signum - 1) & 1 for mask in masks)]
    return {"kept": kept, "exitcode": mine.exitcode}


def do_raise() -> None:
    raise RuntimeError("as asked")


def do_interrupt(how: str) -> None:
    """No `Exception`."""
    raise {"KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[how]


def do_cancel() -> None:
    """What a loop raises that a handler runs, or waits for. It is no `Exception`, either."""

    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()  # `asyncio.run` refuses to in a thread that has one running
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])))
    task = loop.create_task(cancel())
    thread.start()
    thread.join()
    loop.close()
    task.result()


def do_spin(millions: str = "20") -> dict[str, Any]:
    """Keeps the GIL: one long call into C."""
    sum(range(int(millions) * 1_000_000))
    return identity()


class _Deaf:
    """Python only prints what is raised in here."""

    def __del__(self) -> None:
        note("deaf")
        time.sleep(60)


def do_deaf() -> None:
    _Deaf()
    time.sleep(60)


def do_catch() -> dict[str, Any]:
    """Whatever is raised, as wsgiref does."""
    note("catching")
    try:
        time.sleep(60)
    except BaseException as error:
        return {**identity(), "caught": repr(error)}
    return identity()


def do_leak(count: str = "1") -> dict[str, Any]:
    """Descriptors, until there are no more."""
    try:
        for _ in range(int(count)):
            leaked.append(os.dup(2))
    except OSError as error:
        return {**identity(), "leaked": len(leaked), "errno": error.errno}
    return {**identity(), "leaked": len(leaked), "errno": 0}


def do_thread(daemon: str = "daemon") -> dict[str, Any]:
    """Leaves a thread behind that never ends."""
    threading.Thread(target=threading.Event().wait, daemon=daemon == "daemon").start()
    return identity()


def do_fork(end: str) -> dict[str, Any] | None:
    """A child that leaves this handler in the way of its name; the parent answers at once and does not wait."""
    pid = os.fork()
    if pid:
        return {**identity(), "child": pid}
    note(f"child current_worker={pyfanout.current_worker()}")
    if end == "raise":
        raise RuntimeError("in the child, as asked")
    if end == "exit":
        sys.exit(0)
    if end == "die":
        os._exit(0)
    if end == "stay":
        signal.pause()
    return None


def do_stick(how: str) -> None:
    """Never comes back: asleep, in Python, in C with the GIL, in a deadlock; or deaf to SIGABRT, too."""
    note(f"stuck pid={os.getpid()}")
    match how:
        case "sleep" | "deaf":
            if how == "deaf":
                faulthandler.disable()
                signal.signal(signal.SIGABRT, signal.SIG_IGN)
            while True:
                time.sleep(60)
        case "spin":
            while True:
                pass
        case "gil":
            sum(range(10**15))
        case "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()


def do_later(how: str, when: str = "idle") -> dict[str, Any]:
    """A thread of the application does it to the worker: as soon as no handler runs, or when it drains."""
    worker = pyfanout.current_worker()

    def act_later() -> None:
        while when == "draining" and worker is not None and not worker.draining:
            time.sleep(0.01)
        time.sleep(0.05)
        note(f"later {how} pid={os.getpid()}")
        if how == "exit":
            os._exit(7)
        if how == "raise":
            raise RuntimeError("in a thread, as asked")
        sum(range(10**15))

    threading.Thread(target=act_later, daemon=True).start()
    return identity()


def do_refuse(error: str, times: str) -> dict[str, Any]:
    refuse_to_take(error, int(times))
    return identity()


def do_identity() -> dict[str, Any]:
    return identity()


COMMON = {name.removeprefix("do_"): value for name, value in list(globals().items()) if name.startswith("do_")}


# ---- blocking ------------------------------------------------------------------------------------------------------


def act(conn: socket.socket, addr: Any) -> None:
    words = read_line(conn).split()
    if not words:
        return
    name, arguments = words[0], words[1:]
    answer = BLOCKING[name](conn, addr, *arguments) if name in BLOCKING else COMMON[name](*arguments)
    if answer is not None:
        conn.sendall(json.dumps(answer).encode() + b"\n")


def read_line(conn: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        data = conn.recv(4096)
        if not data:
            break
        line += data
    return line.decode()


def whoami(conn: socket.socket, addr: Any) -> dict[str, Any]:
    return {**identity(), "addr": repr(addr), **facts_of(conn), "thread": threading.current_thread().name}


def hold(conn: socket.socket, _addr: Any) -> None:
    """Busy until the client sends something other than a + or goes away."""
    try:
        conn.sendall(b"held\n")
        said = conn.recv(1)
        if said == b"+":  # see the harness: its request goes on
            said = conn.recv(1)
        if said:
            conn.sendall(b"released\n")
    finally:
        note("hold ended")


def sleep(_conn: socket.socket, _addr: Any, seconds: str) -> dict[str, Any]:
    time.sleep(float(seconds))
    return identity()


def detach(conn: socket.socket, _addr: Any) -> None:
    """Another thread answers after the handler has returned."""
    fd = conn.detach()
    returned = threading.Event()

    def answer() -> None:
        returned.wait(0.05)  # gives the handler time to return; nothing depends on it
        with socket.socket(fileno=fd) as mine:
            mine.sendall(json.dumps(identity()).encode() + b"\n")

    threading.Thread(target=answer).start()


def leak_all(conn: socket.socket, _addr: Any) -> None:
    """Every descriptor that is left, and the connection's own, which nobody closes any more."""
    conn.sendall(json.dumps(do_leak("1000000")).encode() + b"\n")
    conn.detach()


def close_twice(conn: socket.socket, _addr: Any) -> None:
    conn.sendall(json.dumps(identity()).encode() + b"\n")
    conn.close()
    conn.close()


def leave_file(conn: socket.socket, _addr: Any) -> None:
    """A file object that holds the socket open: the client must see the end all the same."""
    file = conn.makefile("rwb")
    kept.append(file)
    file.write(json.dumps(identity()).encode() + b"\n")
    file.flush()


def keep(conn: socket.socket, _addr: Any) -> dict[str, Any]:
    """Leaks the socket object itself: it is closed all the same."""
    kept.append(conn)
    return identity()


BLOCKING = {
    "whoami": whoami,
    "hold": hold,
    "sleep": sleep,
    "detach": detach,
    "close_twice": close_twice,
    "leak_all": leak_all,
    "leave_file": leave_file,
    "keep": keep,
}


def hello(conn: socket.socket, _addr: Any) -> None:
    """HTTP, for `ab` and `wrk`."""
    if conn.recv(4096):
        conn.sendall(HTTP_ANSWER)


class Web(BaseHTTPRequestHandler):
    """For http.server, which keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()


def wsgi(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


# ---- asyncio -------------------------------------------------------------------------------------------------------


async def act_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    words = (await reader.readline()).decode().split()
    if not words:
        return
    name, arguments = words[0], words[1:]
    if name in ASYNC:
        answer = await ASYNC[name](reader, writer, *arguments)
    else:
        answer = COMMON[name](*arguments)
    if answer is not None:
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


async def whoami_async(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
    facts = facts_of(writer.get_extra_info("socket"))
    return {**identity(), "addr": repr(writer.get_extra_info("peername")), **facts, "thread": "MainThread"}


async def hold_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(b"held\n")
        said = await reader.read(1)
        if said == b"+":
            said = await reader.read(1)
        if said:
            writer.write(b"released\n")
    finally:
        note("hold ended")


async def sleep_async(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, seconds: str) -> dict[str, Any]:
    await asyncio.sleep(float(seconds))
    return identity()


async def close_twice_async(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json.dumps(identity()).encode() + b"\n")
    writer.close()
    writer.close()


async def detach_async(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Another protocol takes the transport over and answers after the handler has returned."""
    transport = writer.transport
    kept.append(writer)
    transport.set_protocol(asyncio.Protocol())

    def answer() -> None:
        transport.write(json.dumps(identity()).encode() + b"\n")
        transport.close()

    asyncio.get_running_loop().call_later(0.05, answer)  # after the handler has returned; nothing depends on it


async def leak_all_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every descriptor that is left; the connection's own is in use until the client goes away."""
    writer.write(json.dumps(do_leak("1000000")).encode() + b"\n")
    await reader.read(1)


async def task(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> dict[str, Any]:
    """Leaves a task behind that never ends."""
    kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
    return identity()


ASYNC = {
    "whoami": whoami_async,
    "hold": hold_async,
    "sleep": sleep_async,
    "close_twice": close_twice_async,
    "leak_all": leak_all_async,
    "detach": detach_async,
    "task": task,
}


def act_in_task(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
    return asyncio.create_task(act_async(reader, writer))


def act_in_future(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Future[list[None]]:
    return asyncio.gather(act_async(reader, writer))


SHARED: list[asyncio.Future[None]] = []


def act_in_shared(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Future[None]:
    """All connections wait for one future, which the third one completes."""
    if not SHARED or SHARED[-1].done():
        SHARED[:] = [asyncio.get_running_loop().create_future()]
        SHARED[0].add_done_callback(lambda _: WAITING.clear())
    WAITING.append(writer)
    writer.write(b"waits\n")
    if len(WAITING) == 3:
        SHARED[0].set_result(None)
    return SHARED[0]


WAITING: list[asyncio.StreamWriter] = []


def raise_before_it_awaits(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> Awaitable[None]:
    raise RuntimeError("as asked")


async def hello_async(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.read(4096):  # ab opens more connections than it needs, and says nothing on them
        writer.write(HTTP_ANSWER)


# ---- a script that calls serve() -----------------------------------------------------------------------------------


def started(worker: pyfanout.Worker) -> None:
    same = worker is pyfanout.current_worker()
    note(f"started slot={worker.slot} gen={worker.generation} pid={worker.pid} same={same}")


def registers(_worker: pyfanout.Worker) -> None:
    atexit.register(note, "exit function")


def exited(worker: pyfanout.Worker) -> None:
    note(f"exited slot={worker.slot} gen={worker.generation} pid={worker.pid}")


def owning(_worker: pyfanout.Worker) -> None:
    """Sets a handler of its own for SIGTERM."""
    do_own("signal")


async def owning_async(_worker: pyfanout.Worker) -> None:
    do_own("loop")


def waiting(worker: pyfanout.Worker) -> None:
    """The second one hangs for ever; its handler for SIGTERM does not end it."""
    if worker.generation == 2:
        signal.signal(signal.SIGTERM, own_sigterm)
        note(f"waiting {os.getpid()}")
        time.sleep(1000)


async def waiting_async(worker: pyfanout.Worker) -> None:
    if worker.generation == 2:
        do_own("loop")
        note(f"waiting {os.getpid()}")
        await asyncio.sleep(1000)


async def started_async(worker: pyfanout.Worker) -> None:
    await asyncio.sleep(0)
    started(worker)


async def exited_async(worker: pyfanout.Worker) -> None:
    await asyncio.sleep(0)
    exited(worker)


def failing(_worker: pyfanout.Worker) -> None:
    raise RuntimeError("the hook fails, as asked")


def lying(worker: pyfanout.Worker) -> None:
    """One of them says too early that it serves, and from a queue that it does not read."""
    if (worker.slot, worker.generation) == (0, 1):
        messages.send(inside(worker).link.sock, messages.Ready(True, 64))


def few_descriptors(_worker: pyfanout.Worker) -> None:
    """A worker that can open a handful more."""
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1 + int(os.environ["SPARE_FDS"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def main() -> None:
    """`serve()` as the JSON in the first argument has it.

    handler, hooks: names in this module. sockets: descriptors to be given as open sockets. nofile: RLIMIT_NOFILE,
    nproc: RLIMIT_NPROC.
    uid: whom to become, after all that needs reading was imported. times: how often to serve. timeout: the default
    of sockets.
    """
    asked = json.loads(sys.argv[1])
    config = asked["config"]
    for hook in ("on_worker_start", "on_worker_exit"):
        if hook in asked:
            config[hook] = globals()[asked[hook]]
    opened = [socket.socket(fileno=fd) for fd in asked.get("sockets", ())]
    if opened:
        config["bind"] = [*(config["bind"] or ()), *opened]
        if len(config["bind"]) == 1:
            config["bind"] = config["bind"][0]
    if "timeout" in asked:
        socket.setdefaulttimeout(asked["timeout"])
    if "nproc" in asked:
        resource.setrlimit(resource.RLIMIT_NPROC, (asked["nproc"], asked["nproc"]))
    if "nofile" in asked:
        resource.setrlimit(resource.RLIMIT_NOFILE, (asked["nofile"], asked["nofile"]))
    if "uid" in asked and os.getuid() == 0:
        for module in ("pyfanout.worker.aio", "pyfanout.worker.blocking", "traceback"):
            importlib.import_module(module)  # its file may be out of reach afterwards
        "host".encode("idna")  # the same; getaddrinfo wants that codec
        os.setgroups([])
        os.setresgid(asked["uid"], asked["uid"], asked["uid"])
        os.setresuid(asked["uid"], asked["uid"], asked["uid"])

    def mine(_signum: int, _frame: object) -> None:
        print("my own handler", flush=True)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    for signum in signals:
        signal.signal(signum, mine)
    signal.signal(signal.SIGCHLD, mine)
    for _ in range(asked.get("times", 1)):
        pyfanout.serve(globals()[asked["handler"]], **config)
        restored = all(signal.getsignal(signum) is mine for signum in (*signals, signal.SIGCHLD))
        print(f"served, my handlers are back: {restored}, wakeup_fd={signal.set_wakeup_fd(-1)}", flush=True)
    for sock in opened:
        sock.close()  # serve() has used a duplicate
