"""Starts Python programs as forks of a process that has their imports already: a boot of a server costs 0.3 s of CPU
otherwise, two thirds of it for Python's start and for imports that are the same each time.

What a test gets is a process as `subprocess` would start it: a child of the process that runs the tests, in a session
of its own, with its own arguments, folder, environment and descriptors, and no others. Only its command line in /proc
is that of the fork server. The fork server has run nothing but imports: it has no thread and no event loop, and nothing
in it is patched. It has imported what each worker of that server imports itself.

So these servers cannot show that a module forgets an import, what is imported when, how much memory a server needs, or
what happens when Python takes its modules apart at the end. Tests of that, of start and exit, and some of each kind of
server start Python itself (FRESH in `conftest.py`). So does each start with a flag or a variable that changes Python,
or by a process whose limits are not those that its fork server was born with.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import platform
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BASE = (
    *("pyfanout.cli.run", "pyfanout.embed.runner", "pyfanout.worker.aio", "pyfanout.worker.blocking"),
    *("pyfanout.worker.loop_threads", "pyfanout.worker.loops", "pyfanout.worker.unix_watch"),
    *("asyncio", "encodings.idna", "http.server", "json", "ssl"),
)
"""What each worker imports, or nearly each."""
UVICORN = ("pyfanout.embed.uvicorn", "uvicorn.server", "uvicorn.lifespan.on")
PROTOCOLS = tuple(f"uvicorn.protocols.{each}" for each in ("http.httptools_impl", "websockets.auto"))
ON_UVLOOP = (*UVICORN, "uvloop", *PROTOCOLS)
WAITRESS = ("pyfanout.embed.waitress", "waitress.server")
HYPERCORN = ("pyfanout.embed.hypercorn", "hypercorn.asyncio")
AIOHTTP = ("pyfanout.embed.aiohttp", "aiohttp.web")
TORNADO = ("pyfanout.embed.tornado", "tornado.web", "tornado.websocket", "tornado.platform.asyncio")
APPLICATIONS = {
    "wsgi": WAITRESS,
    "flask": (*WAITRESS, "flask"),
    "asgi": ON_UVLOOP,
    "fastapi": (*ON_UVLOOP, "fastapi", "anyio._backends._asyncio"),
    "uvicorn_on_asyncio": (*UVICORN, "uvicorn.protocols.http.h11_impl", "uvicorn.protocols.websockets.wsproto_impl"),
    "aiohttp": AIOHTTP,
    "aiohttp_on_uvloop": (*AIOHTTP, "uvloop"),
    "tornado": TORNADO,
    "tornado_on_uvloop": (*TORNADO, "uvloop"),
    "hypercorn_on_uvloop": (*HYPERCORN, "uvloop"),
    "trio": ("pyfanout.embed.trio", "trio"),
    "anyio": ("pyfanout.embed.anyio", "anyio._backends._asyncio"),
    "twisted": ("pyfanout.embed.twisted", "twisted.web.server", "twisted.internet.epollreactor"),
}
"""What those in tests/embed/apps.py import, each with its server. Not gevent, which patches what is imported later."""
SERVERS = {
    "cheroot": ("pyfanout.embed.cheroot", "cheroot.wsgi"),
    "gevent": (),
    "hypercorn": HYPERCORN,
    "wsgiref": ("pyfanout.embed.wsgiref",),
}
"""What they import instead with `--server`."""
FLAGS = ("-W", "default")
"""Those with which tests start Python."""
CHANGES_PYTHON = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "ASAN_", "TZ", "PATCH")
"""The beginnings of names of variables that change how Python starts; with PATCH an application has gevent patch it."""
MESSAGE_BYTES = 200_000
DESCRIPTORS = 250
"""At most, in one message; the kernel's limit."""
CLONE_PARENT = 0x8000
CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
"""The number of the system call. glibc's clone() would need a stack."""


# ---- in the process that runs the tests ------------------------------------------------------------------------------


class Child:
    """A process that was started; what `subprocess.Popen` offers of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None and self.returncode is None:
            fd = os.pidfd_open(self.pid)
            try:
                if not select.select([fd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
            finally:
                os.close(fd)
        code = self._reap(0)
        assert code is not None
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkServer:
    """A process that forks, and the socket on which it is asked to."""

    def __init__(self, pid: int, sock: socket.socket, born: list[object]) -> None:
        self.pid, self._sock, self._born = pid, sock, born

    @classmethod
    def start(cls) -> ForkServer:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            process = subprocess.Popen(
                [sys.executable, *FLAGS, __file__, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=python_environment(),
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        process.returncode = 0  # it is waited for by nobody: it ends when this process does
        return cls(process.pid, ours, _circumstances())

    def with_imports(self, names: Sequence[str]) -> ForkServer:
        """Another one, that has imported these, too."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            return ForkServer(self._ask({"imports": names}, [its.fileno()]), ours, self._born)

    def run(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], fds: Mapping[int, int]
    ) -> Child | None:
        """Python with these arguments. `fds`: by the number that each has there. None: it would not be the same."""
        if self._born != _circumstances() or len(fds) > DESCRIPTORS:
            return None
        request = {"words": words, "folder": str(folder), "environment": dict(environment), "numbers": list(fds)}
        return Child(self._ask(request, list(fds.values())))

    def _ask(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        socket.send_fds(self._sock, [json.dumps(request).encode()], fds)
        answer = self._sock.recv(MESSAGE_BYTES)
        assert answer, "the fork server has ended"
        return int(answer)

    def owns(self, fd: int) -> bool:
        return fd == self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


_servers: dict[tuple[str, ...], ForkServer] = {}
"""By what they import besides."""


def launch(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    fds: Mapping[int, int],
) -> Child | None:
    """The process that `command` starts. None: `subprocess` must start it."""
    python = [sys.executable, *FLAGS]
    words = list(command[len(python) :])
    if CLONE is None or list(command[: len(python)]) != python or (words[0][0] == "-" and words[0] not in ("-m", "-c")):
        return None
    if "--preload" in words or _of_python(environment) != _of_python(python_environment()):
        return None
    if () not in _servers:
        _servers[()] = ForkServer.start()
        atexit.register(close)
    imports = imports_of(words, folder)
    if imports not in _servers:
        _servers[imports] = _servers[()].with_imports(imports)
    return _servers[imports].run(words, folder, environment, fds)


def imports_of(words: Sequence[str], folder: Path) -> tuple[str, ...]:
    """What the workers of `pyfanout run apps:name` in this folder import besides, all of them. Not gunicorn, which
    takes the folder in which it is imported for that in which it shall run."""
    if list(words[:3]) != ["-m", "pyfanout", "run"] or folder not in (HERE, HERE / "embed"):
        return ()
    if folder == HERE:
        return ("multiprocessing",)
    name = words[3].removeprefix("apps:")
    if "--server" in words:
        own = SERVERS.get(words[words.index("--server") + 1], ())
    elif name[:1].isupper():  # a class, from the standard library
        own = ("pyfanout.embed.socketserver",)
    else:
        own = APPLICATIONS.get(name, ())
    return ("xmlrpc.server", *own)


def close() -> None:
    """They end, as they do when this process dies."""
    for each in _servers.values():
        each.close()
    _servers.clear()


def pids() -> set[int]:
    return {each.pid for each in _servers.values()}


def owns(fd: int) -> bool:
    return any(each.owns(fd) for each in _servers.values())


def python_environment() -> dict[str, str]:
    """Ours, and the modules in this folder can be imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(CHANGES_PYTHON)}


def _circumstances() -> list[object]:
    """What a child inherits besides: a test may have changed it."""
    status = Path("/proc/self/status").read_text()
    names = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "NoNewPrivs", "Cpus_allowed", "CapEff")
    found = [line for line in status.splitlines() if line.partition(":")[0] in names]
    return [Path("/proc/self/limits").read_text(), os.getpriority(os.PRIO_PROCESS, 0), *found]


# ---- the process that forks ------------------------------------------------------------------------------------------


def main() -> None:
    request, fds = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request, fds)
    run(request["words"])


def serve(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork when asked. Returns in a child only, with what it is to be and its descriptors."""
    prepare(BASE)
    while True:
        data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, DESCRIPTORS)
        if not data:
            os._exit(0)
        request = json.loads(data)
        if pid := fork_sibling():
            for fd in fds:
                os.close(fd)
            sock.send(b"%d" % pid)
            continue
        sock.close()
        if "imports" not in request:
            return request, fds
        sock = socket.socket(fileno=fds[0])
        prepare(request["imports"])


def prepare(imports: Sequence[str]) -> None:
    for name in imports:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child does not look at what was imported, which would copy it


def fork_sibling() -> int:
    """As os.fork, but the child's parent is the parent of this process, who can wait for it."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None, use_errno=True).syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def become(request: Mapping[str, Any], fds: Sequence[int]) -> None:
    """A new process as `subprocess` starts it, up to Python's start."""
    os.setsid()
    numbers = request["numbers"]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["folder"])
    for name in set(os.environ) - set(request["environment"]):
        del os.environ[name]
    os.environ.update(request["environment"])


def run(words: Sequence[str]) -> None:
    """As `python -m module argument...`, `python -c code argument...` or `python script argument...`."""
    codes: list[int] = []
    atexit.register(end, codes)  # registered first, called last
    sys.orig_argv = [sys.executable, *FLAGS, *words]
    importlib.invalidate_caches()
    try:
        match words:
            case ("-m", name, *arguments):
                sys.argv = ["-m", *arguments]
                sys.path[0] = str(Path.cwd())
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            case ("-c", code, *arguments):
                sys.argv = ["-c", *arguments]
                sys.path[0] = ""
                run_code(code, "<string>")
            case (script, *arguments):
                path = Path(script).absolute()
                sys.argv = [script, *arguments]
                sys.path[0] = str(path.parent)
                run_code(path.read_bytes(), str(path), __file__=str(path))
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            codes.append(error.code or 0)
        raise
    else:
        codes.append(0)


def run_code(code: str | bytes, name: str, **names: str) -> None:
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    vars(module).update(names)
    exec(compile(code, name, "exec"), vars(module))


def end(codes: Sequence[int]) -> None:
    """Python would go on to take each module apart, for 40 ms. What nothing refers to any more is found, and may warn;
    what a module refers to is not."""
    if codes:
        gc.collect()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(codes[0])


if __name__ == "__main__":
    main()
