"""cli: the command, in this process; a stand-in for the server notes what it is asked to do."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from gunicorn.config import KNOWN_SETTINGS
from uvicorn.main import main as uvicorn_main

from pyfanout.cli import foreign, main, run
from pyfanout.config import Config, Policy, options
from pyfanout.errors import LoadError, WorkerError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    for option in options().values():
        monkeypatch.delenv(option.variable, raising=False)


class Server:
    """Stands for pyfanout.server.Master."""

    def __init__(self) -> None:
        self.calls: list[tuple[Config, str]] = []
        self.error: Exception | None = None

    def of(self, config: Config, app: str, *, signals: object) -> Server:
        assert signals is None
        self.calls.append((config, app))
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr("pyfanout.cli.run.Master", server)
    return server


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a command that exits with 1."""
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pyfanout: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("pyfanout: ").rstrip("\n")


def test_run(server: Server) -> None:
    assert main(["run", "os.path:join", "-w", "2"]) == 0
    assert server.calls == [(Config(workers=2), "os.path:join")]


def test_every_flag(server: Server) -> None:
    argv = (
        "run -b :80 --bind unix:/a,b -w 3 --threads 4 --policy source-hash --backlog 5 --max-connections 6 "
        "--max-requests 7 --max-requests-jitter 8 --drain-timeout 9.5 --boot-timeout 10 --no-nodelay "
        "--log-level debug --ready-fd 11 --pidfile /run/p app:handler"
    )
    assert main(argv.split()) == 0
    assert server.calls[0][0] == Config(
        bind=(":80", "unix:/a,b"),
        workers=3,
        threads=4,
        policy=Policy.SOURCE_HASH,
        backlog=5,
        max_connections=6,
        max_requests=7,
        max_requests_jitter=8,
        drain_timeout=9.5,
        boot_timeout=10,
        nodelay=False,
        log_level="debug",
        ready_fd=11,
        pidfile="/run/p",
    )


def test_flags_over_variables_over_defaults(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFANOUT_THREADS", "4")
    monkeypatch.setenv("PYFANOUT_NODELAY", "no")
    monkeypatch.setenv("PYFANOUT_BIND", ":80,:81")
    main(["run", "app:handler", "--nodelay", "-w1"])
    config = server.calls[0][0]
    assert (config.threads, config.nodelay, config.bind, config.backlog) == (4, True, (":80", ":81"), 2048)


@pytest.mark.parametrize(("error", "code"), [(WorkerError("no worker"), 3), (LoadError("no app"), 4)])
def test_a_failure_is_one_line_and_its_exit_code(
    server: Server, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    server.error = error
    assert main(["run", "app:handler"]) == code
    assert capsys.readouterr().err == f"pyfanout: {error}\n"


def test_a_mistake_of_ours_is_not_hidden(server: Server) -> None:
    server.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["run", "app:handler"])


def test_check_config(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "json:dump", "--check-config", "-w", "3", "-b", ":0"]) == 0
    captured = capsys.readouterr()
    expected = Config(workers=3, bind=(":0",)).describe()
    assert captured.out == f"app = json:dump\nserved as = handler by pyfanout\n{expected}\n"
    assert captured.err == ""
    assert server.calls == []


def test_check_config_finds_misspelt_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYFANOUT_WOKERS", "3")
    assert main(["run", "json:dump", "--check-config"]) == 0
    assert "PYFANOUT_WOKERS is not an option; did you mean PYFANOUT_WORKERS?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "try 'pyfanout --help'"),
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "the following arguments are required: module:attr; try 'pyfanout run --help'"),
        (["run", "app:handler", "--wokers", "2"], "unknown argument '--wokers'; try 'pyfanout run --help'"),
        (["run", "app:handler", "extra"], "unknown argument 'extra'; try 'pyfanout run --help'"),
        (["run", "app:handler", "-w"], "expected one argument; try 'pyfanout run --help'"),
        (["run", "app:handler", "--thr", "2"], "unknown argument '--thr'"),
        (
            ["run", "app:handler", "-w", "many"],
            "workers: 'many' (from --workers) is not a number from 1 to 1024 or \"auto\"",
        ),
        (["run", "app:handler", "--policy", "x"], "policy: 'x' (from --policy) is not one of round-robin"),
        (["run", "app:handler", "-b", "nowhere"], "bind 'nowhere': it has no port"),
        (["run", "app:handler", "-b", "a:80,b:80"], "each by itself"),
        (["run", "app"], "the application 'app'"),
        (["run", "app.py:handler"], "name the module, not its file, such as app:handler"),
    ],
)
def test_a_mistake_is_one_line(server: Server, capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert says in fails(capsys, *argv)
    assert says in fails(capsys, *argv, "--check-config") or argv in ([], ["run", "app:handler", "-w"])
    assert server.calls == []


def test_check_config_opens_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sock"
    assert main(["run", "json:dump", "--check-config", "-b", f"unix:{path}", "--pidfile", f"{tmp_path}/pid"]) == 0
    assert not list(tmp_path.iterdir())
    assert f"bind = unix:{path}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--unix-owner", "no-such-user"], "unix_owner: this machine has no user 'no-such-user'"),
        (["--certfile", "/no/such/file"], "certfile: /no/such/file cannot be used: No such file or directory"),
        (["--chdir", "/no/such/folder"], "chdir: the folder '/no/such/folder' cannot be entered"),
    ],
)
def test_check_config_finds_what_a_start_would(
    capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert says in fails(capsys, "run", "json:dump", "--check-config", *options)


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in options().values():
        if not option.python_only:
            assert option.flag in text
    assert "(default: 127.0.0.1:8000)" in text
    assert "on-worker-start" not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("pyfanout ")


# ---- the options of other servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("app:app", "the verb is missing; write pyfanout run app:app"),
        ("app:app --workers 2 -b :80", "the verb is missing; write pyfanout run app:app --workers 2 -b :80"),
        ("--workers 2 pack.app:make.app", "the verb is missing; write pyfanout run --workers 2 pack.app:make.app"),
        ("app.py", "the verb is missing; write pyfanout run app.py"),
        ("run app:app --port 8080", "--host and --port are no options here: write --bind 127.0.0.1:8080"),
        ("run --host=0.0.0.0 --port=80 app:app", "write --bind 0.0.0.0:80"),
        ("run app:app --host ::1", "write --bind '[::1]:8000'"),
        ("run --uds unix.sock app:app", "--uds is no option here: write --bind unix:unix.sock"),
        ("run --fd 4 app:app", "write --bind fd://4"),
        ("run -k gevent app:app", "-k is no option here: choose the server with --server"),
        ("run -kgevent app:app", "-k is no option here: choose the server with --server"),
        ("run app:app --worker-class uvicorn.workers.UvicornWorker", "--worker-class is no option here: choose"),
        ("run --reload app:app", "--reload is no option here: pyfanout does not watch files"),
        ("run app:app --access-logfile -", "--access-logfile is no option here: pyfanout speaks no HTTP"),
        ("run app:app --daemon", "let systemd or a container start it"),
        ("run app:app -u www-data", "-u is no option here: start pyfanout as that user"),
        ("run app:app --umask 7", "write --unix-mode 660"),
        ("run -c gunicorn.conf.py app:app", "-c is no option here: there is no configuration file"),
        ("run app:app --loop uvloop", "options of the server are arguments of its runner"),
        ("run app:app --root-path /api", "options of the server are arguments of its runner"),
        ("run app:app --proxy-headers", "forwarded_allow_ips"),
        ("run app:app -i max", "-i is no option here: write --workers N, or --workers auto"),
        ("run app:app --graceful-timeout 40", "write --drain-timeout 40"),
        ("run app:app --graceful-timeout", "write --drain-timeout 25"),
        ("run app:app --pid '/run/a b'", "write --pidfile '/run/a b'"),
    ],
)
def test_an_option_of_another_server_is_answered(
    server: Server, capsys: pytest.CaptureFixture[str], argv: str, says: str
) -> None:
    assert says in fails(capsys, *shlex.split(argv))
    assert server.calls == []


def test_every_option_of_gunicorn_and_uvicorn_is_known_or_answered() -> None:
    """Those of the versions that are installed."""
    settings = [setting for setting in KNOWN_SETTINGS if setting.cli]
    theirs = {flag for setting in settings for flag in setting.cli}
    assert {"-k", "--umask", "--reload"} <= theirs
    for parameter in uvicorn_main.params:
        theirs |= {flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-")}
    assert {"--uds", "--no-access-log"} <= theirs
    ours = {"--version", "--help", "-h", "--check-config", *run.flags()}
    assert sorted(theirs - ours - set(foreign.ANSWERS) - {"--host", "--port"}) == []


def test_what_only_looks_like_an_option_of_another_server(server: Server) -> None:
    assert main(["run", "app:handler", "-b", "unix:k", "--pidfile=-k", "-w", "1"]) == 0


def test_a_server_without_a_loop_imports_no_asyncio() -> None:
    """asyncio and ssl take a quarter of the time of the start, and 6 MB of each process."""
    code = "import sys, pyfanout.__main__, pyfanout.worker.blocking; print({'asyncio', 'ssl'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
