"""cli: the command, in this process; a stand-in for the server notes what it is asked to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyfanout.cli import main
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
        self.calls: list[tuple[Config, Callable[[], Any]]] = []
        self.error: Exception | None = None

    def of(self, config: Config, load: Callable[[], Any], *, signals: object) -> Server:
        assert signals is None
        self.calls.append((config, load))
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


def test_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["run", "os.path:join", "-w", "2"]) == 0
    ((config, load),) = server.calls
    assert config == Config(workers=2)
    assert load() is __import__("os").path.join


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
    assert main(["run", "app:handler", "--check-config", "-w", "3", "-b", ":0"]) == 0
    captured = capsys.readouterr()
    expected = Config(workers=3, bind=(":0",)).describe()
    assert captured.out == f"app = app:handler\n{expected}\n"
    assert captured.err == ""
    assert server.calls == []


def test_check_config_finds_misspelt_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYFANOUT_WOKERS", "3")
    assert main(["run", "app:handler", "--check-config"]) == 0
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


def test_check_config_opens_and_imports_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sock"
    assert main(["run", "no_such_module:handler", "--check-config", "-b", f"unix:{path}"]) == 0
    assert not path.exists()
    assert f"bind = unix:{path}\n" in capsys.readouterr().out


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
