"""Servers that cannot start: the exit code says whose fault it is, one clear line says why."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import NOBODY, Server, ask, hold, is_over, release

MakeServer = Callable[[], Server]

APPS = {
    "fine": "def handler(conn, addr):\n    pass\n",
    "raises": "def deep():\n    raise ValueError('no database')\ndeep()\n",
    "exits": "import sys\nsys.exit('the application does not want')\n",
    "syntax": "def handler(:\n",
    "needs": "import a_module_that_is_missing\n",
    "not_callable": "handler = 42\n",
    "generator": "def handler(conn, addr):\n    yield\n",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "dies": "import os\nos._exit(7)\n",
    "paints": "raise ValueError('\\x1b[2J\\n2026-01-01 00:00:00,000 [1] INFO all is well')\n",
    "slow": "import time\ntime.sleep(100)\n",
    "loop": "import asyncio\nasyncio.get_running_loop()\ndef handler(conn, addr):\n    pass\n",
    "patched": "from gevent import monkey\nmonkey.patch_all()\ndef handler(conn, addr):\n    pass\n",
    "full": (
        "import os, resource\n"
        "limits = (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])\n"
        "os.register_at_fork(after_in_child=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))\n"
        "def handler(conn, addr):\n    pass\n"
        "async def coroutine(reader, writer):\n    pass\n"
    ),
}


def run_app(server: MakeServer, folder: Path, app: str, **options: Any) -> Server:
    """A server that cannot start; its log may tell of errors."""
    for name, text in APPS.items():
        (folder / f"{name}.py").write_text(text)
    one = server()
    one.expect("ERROR", "^ *Traceback ", "^pyfanout: ")
    return one.start(app, cwd=folder, wait=False, **{"workers": 2, "log_level": "info", **options})


def last_line(one: Server) -> str:
    """What a shell shows at the end."""
    return one.log.splitlines()[-1]


@pytest.mark.parametrize(
    ("app", "reason", "traceback"),
    [
        ("raises:handler", "the import of 'raises' failed: ValueError: no database", "ValueError: no database"),
        ("exits:handler", "the import of 'exits' failed: SystemExit", "SystemExit: the application does not want"),
        ("syntax:handler", "the import of 'syntax' failed: SyntaxError", "SyntaxError: "),
        ("needs:handler", "No module named 'a_module_that_is_missing'", "ModuleNotFoundError"),
        ("absent:handler", "no module named 'absent' in ", None),
        ("fine.deeper:handler", "fine", None),
        ("fine:handlr", "'fine' has no attribute 'handlr'; did you mean handler?", None),
        ("not_callable:handler", "'not_callable:handler' is not a function", None),
        ("generator:handler", "generator", None),
    ],
)
def test_an_application_that_cannot_be_loaded(
    server: MakeServer, tmp_path: Path, app: str, reason: str, traceback: str | None
) -> None:
    """Exit code 4; the worker's own traceback, once for all workers, from the application's first frame; the last line
    says it all."""
    one = run_app(server, tmp_path, app, workers=3)
    assert one.wait_exit() == 4
    one.wait_nobody()
    assert last_line(one).startswith("pyfanout: no worker could start: ")
    assert reason in last_line(one)
    frames = traceback and "SyntaxError" not in traceback  # a module that cannot be compiled has none
    assert one.log.count("Traceback (most recent call last)") == (1 if frames else 0)
    shown = re.findall(r'File "(.*?)", line', one.log)
    assert set(shown) == ({f"{tmp_path}/{app.partition(':')[0]}.py"} if traceback else set())
    if traceback:
        assert len(re.findall(f"^ *{traceback}", one.log, re.MULTILINE)) == 1
    assert len(re.findall("could not start", one.log)) == 1


def test_the_traceback_is_the_applications(server: MakeServer, tmp_path: Path) -> None:
    one = run_app(server, tmp_path, "raises:handler")
    assert one.wait_exit() == 4
    assert 'raises.py", line 2, in deep' in one.log


def test_the_text_of_an_application_neither_paints_nor_forges(server: MakeServer, tmp_path: Path) -> None:
    one = run_app(server, tmp_path, "paints:handler", workers=1)
    assert one.wait_exit() == 4
    assert "\x1b" not in one.log
    assert "\n  ValueError: \\x1b[2J\n  2026-01-01 00:00:00,000 [1] INFO all is well\n" in one.log
    assert last_line(one).endswith("the import of 'paints' failed: ValueError: \\x1b[2J")


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_a_start_hook_that_raises(server: MakeServer, handler: str) -> None:
    one = server()
    one.expect("ERROR", "^ *Traceback ", "^pyfanout: ")
    one.start(handler, script={"on_worker_start": "failing"}, workers=3, wait=False)
    assert one.wait_exit() == 3
    assert one.log.count("Traceback (most recent call last)") == 1
    assert last_line(one) == "pyfanout: no worker could start: RuntimeError: the hook fails, as asked"


def test_a_coroutine_hook_beside_a_plain_handler(server: MakeServer) -> None:
    one = server()
    one.expect("ERROR", "^pyfanout: ")
    one.start("act", script={"on_worker_start": "started_async"}, workers=1, wait=False)
    assert one.wait_exit() in (3, 4)
    assert "a hook may be a coroutine function only beside a server on asyncio" in last_line(one)


@pytest.mark.parametrize(
    ("app", "how"),
    [("killed:handler", "was killed by SIGKILL"), ("dies:handler", "exited with code 7")],
)
def test_workers_that_die_at_boot(server: MakeServer, tmp_path: Path, app: str, how: str) -> None:
    one = run_app(server, tmp_path, app)
    assert one.wait_exit() == 3
    one.wait_nobody()
    assert len(re.findall(how, one.log)) == 2
    assert last_line(one).startswith("pyfanout: no worker could start")


@pytest.mark.parametrize("handler", ["handler", "coroutine"])
def test_workers_without_a_free_descriptor(server: MakeServer, tmp_path: Path, handler: str) -> None:
    one = run_app(server, tmp_path, f"full:{handler}", preload=True)
    assert one.wait_exit() == 3
    one.wait_nobody()
    assert last_line(one) == "pyfanout: no worker could start: OSError: [Errno 24] Too many open files"


def test_workers_that_never_become_ready(server: MakeServer, tmp_path: Path) -> None:
    one = run_app(server, tmp_path, "slow:handler", boot_timeout=3)
    one.expect("^ *Fatal Python error", "Python stacks at death")
    assert one.wait_exit() == 3
    one.wait_nobody()
    assert len(re.findall("is not ready after 3 s .boot_timeout.; it is killed", one.log)) == 2
    assert len(re.findall(r'File ".*slow.py", line 2 in <module>', one.log)) == 1  # said once, as all are there


def test_one_good_worker_is_enough(server: MakeServer, tmp_path: Path) -> None:
    """The others are tried again; ready_fd tells when all are there."""
    (tmp_path / "app.py").write_text(
        "import os\n"
        "import pyfanout\n"
        "worker = pyfanout.current_worker()\n"
        "if worker.slot == 0 and worker.generation < 3:\n"
        "    os._exit(1)\n"
        "def handler(conn, addr):\n"
        "    pass\n"
    )
    one = server().start("app:handler", cwd=tmp_path, workers=2)
    assert len(re.findall("exited with code 1", one.log)) == 2
    assert "all workers are ready" in one.log


# ---- --check-config ------------------------------------------------------------------------------------------------


def check(folder: Path, app: str, *options: str) -> subprocess.CompletedProcess[str]:
    for name, text in APPS.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "web.py").write_text(
        "def wsgi(environ, start_response): ...\nasync def asgi(scope, receive, send): ...\ndef make(): return wsgi\n"
        "async def make_async(): return asgi\n"
    )
    command = [sys.executable, "-m", "pyfanout", "run", app, "--check-config", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("app", "options", "served"),
    [
        ("fine:handler", "--workers 2", "handler by pyfanout"),
        ("web:wsgi", "", r"wsgi by waitress [\d.]+"),
        ("web:make", "--factory --server cheroot", r"wsgi by cheroot [\d.]+"),
        ("web:asgi", "--server hypercorn --app-dir .", r"asgi by hypercorn [\d.]+"),
    ],
)
def test_check_config_loads_the_application(tmp_path: Path, app: str, options: str, served: str) -> None:
    done = check(tmp_path, app, *options.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(rf"app = {app}\nserved as = {served}\nbind = ", done.stdout)


@pytest.mark.parametrize(
    ("app", "options", "reason", "trace"),
    [
        ("raises:handler", "", "the import of 'raises' failed: ValueError: no database", 'raises.py", line 2, in deep'),
        ("exits:handler", "", "the import of 'exits' failed: SystemExit: the application", "exits.py"),
        ("syntax:handler", "", "the import of 'syntax' failed: SyntaxError", "syntax.py"),
        ("absent:handler", "", "no module named 'absent' in {folder} or on sys.path", None),
        ("not_callable:handler", "", "'not_callable:handler' is not a function", None),
        ("web:asgi", "--server waitress", "server: waitress does not serve asgi applications", None),
        (
            "web:make_async",
            "--factory --preload",
            "the factory is async, and needs a running loop; --preload loads",
            None,
        ),
        ("loop:handler", "--preload", "no running event loop; --preload loads it in the master", "loop.py"),
    ],
)
def test_check_config_tells_why_an_application_cannot_be_loaded(
    tmp_path: Path, app: str, options: str, reason: str, trace: str | None
) -> None:
    """As a start does."""
    done = check(tmp_path, app, *options.split())
    assert (done.returncode, done.stdout) == (4, "")
    *lines, last = done.stderr.splitlines()
    assert last.startswith("pyfanout: ")
    assert reason.format(folder=tmp_path) in last
    assert bool(lines) == bool(trace)
    assert "/pyfanout/" not in done.stderr.replace(str(tmp_path), "")
    assert (trace or "") in done.stderr


def test_check_config_refuses_what_a_master_cannot_load(tmp_path: Path) -> None:
    done = check(tmp_path, "patched:handler", "--preload")
    assert (done.returncode, done.stdout) == (1, "")
    assert "gevent has patched the master's process" in done.stderr


@pytest.mark.parametrize("words", ["run fine:handler --check-config", "run --help", "--version"])
def test_output_that_cannot_be_written(tmp_path: Path, words: str) -> None:
    """`head` has read enough; a disk is full."""
    (tmp_path / "fine.py").write_text(APPS["fine"])

    def run_to(stdout: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyfanout", *words.split()]
        return subprocess.run(
            command, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100, check=False
        )

    reader, writer = os.pipe()
    os.close(reader)
    done = run_to(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = run_to(full.fileno())
    assert (done.returncode, done.stderr) == (1, "pyfanout: [Errno 28] print on stdout: No space left on device\n")


def test_a_check_that_is_interrupted_has_not_succeeded(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(100)\n")
    command = [sys.executable, "-m", "pyfanout", "run", "endless:handler", "--check-config"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.terminate()
    assert process.returncode == 1


# ---- options and addresses -------------------------------------------------------------------------------------------


def fails_with(*arguments: str, environ: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()) -> str:
    """Run the command, which must exit with 1 and one line on stderr; that line."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYFANOUT_", "LISTEN_")) and k != "WEB_CONCURRENCY"
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APPS["fine"])
        done = subprocess.run(
            [sys.executable, "-m", "pyfanout", "run", "app:handler", *arguments],
            cwd=folder,
            env={**clean, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=20,
            pass_fds=pass_fds,
            check=False,
        )
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pyfanout: ")
    return lines[0]


@pytest.fixture
def taken(guard: None) -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_a_port_in_use(taken: int) -> None:
    assert f"127.0.0.1:{taken}" in (line := fails_with("-b", f"127.0.0.1:{taken}"))
    assert "in use" in line


def test_a_port_in_use_after_one_that_is_free(taken: int, tmp_path: Path) -> None:
    """What was opened before it is taken away again."""
    path = tmp_path / "s"
    assert "in use" in fails_with("-b", f"unix:{path}", "-b", f"127.0.0.1:{taken}")
    assert not path.exists()


def test_a_unix_path_that_a_living_server_has(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        assert "another process listens there" in fails_with("-b", f"unix:{path}")
        assert path.exists()


def test_descriptors_that_are_no_listeners(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        left, right = socket.socketpair()
        with left, right:
            assert "is not a socket" in fails_with("-b", f"fd://{file.fileno()}", pass_fds=(file.fileno(),))
            assert "stream" in fails_with("-b", f"fd://{datagram.fileno()}", pass_fds=(datagram.fileno(),))
            assert "is a connection" in fails_with("-b", f"fd://{left.fileno()}", pass_fds=(left.fileno(),))
    assert "is not open" in fails_with("-b", "fd://300")


def test_a_ready_fd_that_is_none() -> None:
    """A listener: every worker would close it once more. One that was not inherited: its number is one of our own."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        fd = sock.fileno()
        line = fails_with("-b", f"fd://{fd}", "--ready-fd", str(fd), pass_fds=(fd,))
        assert f"ready_fd: {fd} is a listening socket" in line
    reader, writer = os.pipe()
    try:
        line = fails_with("-b", "127.0.0.1:0", "--ready-fd", str(reader), pass_fds=(reader,))
        assert f"ready_fd: {reader} is not open for writing" in line
    finally:
        os.close(reader)
        os.close(writer)
    for fd in (3, 4):
        assert f"ready_fd: {fd} is not an open" in fails_with("-b", "127.0.0.1:0", "--ready-fd", str(fd))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-b", "no-such-host.invalid:80"], "unknown host 'no-such-host.invalid'"),
        (["-b", "192.0.2.1:0"], "192.0.2.1"),
        (["-b", "127.0.0.1"], "has no port"),
        (["-b", "127.0.0.1:99999"], "is not a port"),
        (["-b", "systemd"], "LISTEN_FDS"),
        (["-b", "unix:"], "the path is missing"),
        (["-b", "unix:/no/such/folder/s"], "must exist and be writable"),
        (["-b", f"unix:/{'x' * 120}"], "too long"),
        (["--ready-fd", "333"], "ready_fd: 333 is not an open descriptor"),
        (["--ready-fd", "x"], "ready_fd"),
        (["--policy", "random"], "policy: 'random'"),
        (["--workers", "0"], "workers"),
        (["--workers", "many"], "workers: 'many' (from --workers) is not a number from 1 to"),
        (["--threads", "1000000"], "threads"),
        (["--drain-timeout", "-1"], "drain_timeout"),
        (["--drain-timeout", "nan"], "drain_timeout"),
        (["--backlog", "0"], "backlog"),
        (["--log-level", "loud"], "log_level"),
        (
            ["--unix-mode", "999"],
            "unix_mode: '999' (from --unix-mode) is not a mode in octal, such as \"660\"; as a number, 0o660",
        ),
        (["--unix-owner", "no-such-user"], "unix_owner: this machine has no user 'no-such-user'"),
        (["--pidfile", "/no/such/folder/pid"], "pidfile"),
        (["--no-such-option"], "unknown argument '--no-such-option'"),
        (["another:app"], "another:app"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str) -> None:
    assert words in fails_with(*([] if "-b" in arguments else ["-b", "127.0.0.1:0"]), *arguments)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WEB_CONCURRENCY", "lots", "'lots' (from WEB_CONCURRENCY) is not a number"),
        ("WEB_CONCURRENCY", "0", "'0' (from WEB_CONCURRENCY)"),
        ("PYFANOUT_WORKERS", "-3", "'-3' (from PYFANOUT_WORKERS)"),
        ("PYFANOUT_POLICY", "best", "'best' (from PYFANOUT_POLICY)"),
        ("PYFANOUT_BIND", "nowhere", "nowhere"),
        ("PYFANOUT_READY_FD", "444", "444"),
    ],
)
def test_bad_variables(name: str, value: str, words: str) -> None:
    arguments = () if name == "PYFANOUT_BIND" else ("-b", "127.0.0.1:0")
    assert words in fails_with(*arguments, environ={name: value})


@pytest.mark.parametrize("way", ["run", "serve"])
def test_a_misspelt_variable_is_said_once(server: MakeServer, way: str) -> None:
    script: dict[str, Any] | None = {} if way == "serve" else None
    one = server().start(
        "act" if script is not None else None, script=script, workers=2, environ={"PYFANOUT_WOKERS": "3"}
    )
    (line,) = one.wait_log("PYFANOUT_WOKERS is not an option; did you mean PYFANOUT_WORKERS")
    assert " WARNING " in line


def test_variables_and_their_order(server: MakeServer) -> None:
    """Command line over environment over default."""
    environ = {
        "PYFANOUT_BIND": "127.0.0.1:0",
        "PYFANOUT_POLICY": "least-connections",
        "PYFANOUT_WORKERS": "5",
        "WEB_CONCURRENCY": "4",
    }
    one = server().start("apps:act", bind=None, environ=environ, workers=3)
    assert "with 3 workers, least-connections" in one.log
    two = server().start("apps:act", bind=None, environ={**environ, "PYFANOUT_WORKERS": "auto"})
    assert "with 4 workers, least-connections" in two.log
    assert ask(two.address)["pid"] in two.workers


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder that is not its own")
def test_a_socket_path_that_may_not_be_written(server: MakeServer, tmp_path: Path) -> None:
    """As an unprivileged user: for root nothing is unwritable."""
    tmp_path.chmod(0o755)
    one = server()
    one.expect("^pyfanout: ")
    one.start("act", script={"uid": NOBODY}, bind=f"unix:{tmp_path}/s", workers=1, wait=False)
    assert one.wait_exit() == 1
    assert re.fullmatch(
        r"pyfanout: bind '.*': Permission denied; the folder '.*' must exist and be writable\n", one.log
    )


def test_a_socket_file_for_others(server: MakeServer, tmp_path: Path) -> None:
    one = server().start(
        "apps:act", workers=1, bind=f"unix:{tmp_path}/s", unix_mode="606", unix_owner=f":{os.getgid()}"
    )
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o606
    assert ask(one.address)["pid"] in one.workers


def test_a_pidfile_that_another_server_has(server: MakeServer, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    one = server().start("apps:act", workers=1, pidfile=pidfile)
    assert pidfile.read_text() == f"{one.pid}\n"
    line = fails_with("-b", "127.0.0.1:0", "--pidfile", str(pidfile))
    assert f"process {one.pid} is alive and has it" in line
    assert pidfile.read_text() == f"{one.pid}\n"
    assert one.stop() == 0
    assert not pidfile.exists()


def test_a_pidfile_of_a_master_that_was_killed(server: MakeServer, tmp_path: Path) -> None:
    """The next one starts although the workers of the first are still at work, and its number is another process's."""
    pidfile = tmp_path / "pid"
    one = server().start("apps:act", workers=1, pidfile=pidfile, drain_timeout=60)
    (worker,) = one.workers
    with hold(one.address) as held:
        one.send(signal.SIGKILL)
        assert one.wait_exit() == -signal.SIGKILL
        pidfile.write_text(f"{os.getpid()}\n")
        two = server().start("apps:act", workers=1, pidfile=pidfile)
        assert pidfile.read_text() == f"{two.pid}\n"
        assert not is_over(worker)
        assert release(held) == b"released\n"
    one.wait_nobody()
    assert two.stop() == 0
    assert not pidfile.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_starts(server: MakeServer, tmp_path: Path, signum: int) -> None:
    """No worker was ever ready: nothing to drain. It is no failure of the application."""
    for name, text in APPS.items():
        (tmp_path / f"{name}.py").write_text(text)
    path = tmp_path / "s"
    pidfile = tmp_path / "pid"
    one = server().start(
        "slow:handler", cwd=tmp_path, wait=False, workers=2, bind=f"unix:{path}", pidfile=pidfile, log_level="info"
    )
    one.wait_until(lambda: len(one.workers) == 2, "two workers boot")
    assert path.exists()
    assert one.stop(signum) == 0
    one.wait_nobody()
    assert not path.exists()
    assert not pidfile.exists()
