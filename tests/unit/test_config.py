"""config: where a value comes from, which are allowed, and the one line that says which was not."""

from __future__ import annotations

import dataclasses
import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfanout.config import Config, Policy, options, unknown_variables
from pyfanout.errors import ConfigError
from pyfanout.host import cpus
from pyfanout.options import Mode

OPTIONS_MD = Path(__file__).parents[2] / "docs" / "options.md"


@pytest.fixture(autouse=True)
def three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: 3)


def hook(worker: object) -> None: ...


def test_defaults() -> None:
    config = Config()
    assert config.bind == ("127.0.0.1:8000",)
    assert config.workers == 3
    assert config.threads == 1
    assert config.policy is Policy.LEAST_CONNECTIONS
    assert config.backlog == 2048
    assert (config.max_connections, config.max_requests, config.jitter) == (0, 0, 0)
    assert (config.drain_timeout, config.boot_timeout) == (25.0, 30.0)
    assert config.nodelay is True
    assert config.log_level == "info"
    assert (config.ready_fd, config.pidfile) == (None, None)
    assert (config.on_worker_start, config.on_worker_exit) == (None, None)
    assert Config.resolve({}, {}) == config


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 2  # type: ignore[misc]


ALLOWED: list[tuple[str, Any, Any]] = [
    ("bind", ":80", (":80",)),
    ("bind", " :80 , [::1]:81,", (":80", "[::1]:81")),
    ("bind", [":80", "unix:/a,b"], (":80", "unix:/a,b")),
    ("bind", (":80",), (":80",)),
    ("workers", 1, 1),
    ("workers", "1024", 1024),
    ("workers", " 2 ", 2),
    ("workers", "auto", 3),
    ("workers", "AUTO", 3),
    ("threads", "256", 256),
    ("unix_mode", "660", Mode(0o660)),
    ("unix_mode", " 0o600 ", Mode(0o600)),
    ("unix_mode", 0o777, Mode(0o777)),
    ("unix_owner", "www-data", "www-data"),
    ("unix_owner", " :33 ", ":33"),
    ("unix_owner", "root:adm", "root:adm"),
    ("chdir", Path("/srv/app/current"), "/srv/app/current"),
    ("app_dir", "src", "src"),
    ("policy", "round-robin", Policy.ROUND_ROBIN),
    ("policy", "Source-Hash", Policy.SOURCE_HASH),
    ("policy", Policy.SOURCE_HASH, Policy.SOURCE_HASH),
    ("backlog", 1, 1),
    ("max_connections", "0", 0),
    ("max_requests", "2147483647", 2**31 - 1),
    ("max_requests_jitter", "0", 0),
    ("drain_timeout", 0, 0.0),
    ("drain_timeout", "1.5", 1.5),
    ("boot_timeout", "1e3", 1000.0),
    ("boot_timeout", " 2.5E-1 ", 0.25),
    ("boot_timeout", ".5", 0.5),
    ("boot_timeout", "1.", 1.0),
    ("nodelay", "off", False),
    ("nodelay", "Yes", True),
    ("nodelay", False, False),
    ("log_level", "DEBUG", "debug"),
    ("ready_fd", "3", 3),
    ("pidfile", "/run/x.pid", "/run/x.pid"),
    ("pidfile", Path("/run/x.pid"), "/run/x.pid"),
    ("on_worker_start", hook, hook),
    ("on_worker_exit", hook, hook),
]


@pytest.mark.parametrize(("name", "value", "expected"), ALLOWED)
def test_allowed(name: str, value: Any, expected: Any) -> None:
    for config in (Config(**{name: value}), Config.resolve({name: value}, {})):
        assert getattr(config, name) == expected
        assert type(getattr(config, name)) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"), [row for row in ALLOWED if isinstance(row[1], str) and row[0] != "policy"]
)
def test_allowed_as_variable(name: str, value: str, expected: Any) -> None:
    assert getattr(Config.resolve({}, {f"PYFANOUT_{name.upper()}": value}), name) == expected


REFUSED: list[tuple[str, Any]] = [
    ("bind", ""),
    ("bind", " , "),
    ("bind", []),
    ("bind", [""]),
    ("bind", [80]),
    ("bind", 80),
    ("bind", b":80"),
    ("workers", 0),
    ("workers", 1025),
    ("workers", -1),
    ("workers", True),
    ("workers", 2.0),
    ("workers", "2.0"),
    ("workers", "many"),
    ("workers", "1_0"),
    ("workers", "\u0663"),
    ("workers", "9" * 5000),
    ("unix_mode", "rw-rw----"),
    ("unix_mode", "888"),
    ("unix_mode", "1777"),
    ("unix_mode", "6_0"),
    ("unix_mode", ""),
    ("unix_mode", -1),
    ("unix_mode", 660),
    ("unix_mode", True),
    ("unix_mode", 6.0),
    ("unix_owner", " "),
    ("unix_owner", ":"),
    ("unix_owner", "a:"),
    ("unix_owner", "a:b:c"),
    ("unix_owner", 33),
    ("chdir", ""),
    ("threads", 0),
    ("threads", 257),
    ("policy", "random"),
    ("policy", 1),
    ("backlog", 0),
    ("backlog", 2**31),
    ("max_connections", -1),
    ("max_requests", "-1"),
    ("max_requests_jitter", False),
    ("drain_timeout", -0.1),
    ("drain_timeout", math.nan),
    ("drain_timeout", math.inf),
    ("drain_timeout", "nan"),
    ("drain_timeout", "30s"),
    ("drain_timeout", "1_0"),
    ("drain_timeout", "1_0.5"),
    ("drain_timeout", "1.5_0"),
    ("drain_timeout", "1e1_0"),
    ("drain_timeout", "\u0663"),
    ("drain_timeout", "\uff11.5"),
    ("drain_timeout", "+1"),
    ("drain_timeout", "-0"),
    ("drain_timeout", "."),
    ("drain_timeout", "0x10"),
    ("drain_timeout", "infinity"),
    ("drain_timeout", 10**400),
    ("drain_timeout", True),
    ("drain_timeout", [30]),
    ("boot_timeout", 0),
    ("boot_timeout", 1_000_001),
    ("nodelay", 1),
    ("nodelay", "perhaps"),
    ("log_level", "loud"),
    ("log_level", 10),
    ("ready_fd", -1),
    ("ready_fd", "stdout"),
    ("ready_fd", "1_0"),
    ("pidfile", ""),
    ("pidfile", b"x"),
    ("pidfile", "a\0b"),
    ("pidfile", 3),
    ("on_worker_start", "app:start"),
    ("on_worker_exit", 3),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused(name: str, value: Any) -> None:
    allowed = options()[name].values.allowed
    with pytest.raises(ConfigError) as at_birth:
        Config(**{name: value})
    with pytest.raises(ConfigError) as resolved:
        Config.resolve({name: value}, {})
    assert str(at_birth.value).startswith(f"{name}: ")
    assert str(at_birth.value).endswith(f" is not {allowed}")
    assert str(resolved.value).endswith(f" (from the argument) is not {allowed}")
    assert "\n" not in str(resolved.value)
    assert len(str(resolved.value)) < 400


@pytest.mark.parametrize("name", [name for name, option in options().items() if option.default != "none"])
def test_none_is_no_value_at_birth(name: str) -> None:
    if name == "max_requests_jitter":
        assert Config(max_requests_jitter=None).jitter == 0
    else:
        with pytest.raises(ConfigError, match=f"{options()[name].word}: None is not"):
            Config(**{name: None})  # type: ignore[arg-type]


def test_the_error_says_where_the_value_came_from() -> None:
    is_not = 'is not a number from 1 to 1024 or "auto"'
    for arguments, environ, command_line, source in [
        ({"workers": "many"}, {}, False, "the argument"),
        ({"workers": "many"}, {}, True, "--workers"),
        ({}, {"PYFANOUT_WORKERS": "many"}, True, "PYFANOUT_WORKERS"),
        ({}, {"WEB_CONCURRENCY": "many"}, True, "WEB_CONCURRENCY"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(f"workers: 'many' (from {source}) {is_not}")):
            Config.resolve(arguments, environ, command_line=command_line)
    with pytest.raises(ConfigError, match="from --max-requests"):
        Config.resolve({"max_requests": "x"}, {}, command_line=True)


def test_arguments_then_variables_then_defaults() -> None:
    environ = {"PYFANOUT_THREADS": "4", "PYFANOUT_BACKLOG": "7", "PYFANOUT_PIDFILE": " "}
    config = Config.resolve({"threads": 2, "backlog": None}, environ)
    assert (config.threads, config.backlog, config.pidfile, config.max_requests) == (2, 7, None, 0)


def test_a_bad_variable_does_not_matter_where_an_argument_wins() -> None:
    assert Config.resolve({"threads": 2}, {"PYFANOUT_THREADS": "x"}).threads == 2


def test_an_argument_wins_over_variables_that_exclude_it() -> None:
    """Also over bad ones, which are not looked at."""
    environ = {"PYFANOUT_CERTFILE": "/cert.pem", "PYFANOUT_KEYFILE": "a\0b"}
    config = Config.resolve({"ssl": hook}, environ)
    assert (config.ssl, config.certfile, config.keyfile) == (hook, None, None)
    with pytest.raises(ConfigError, match="keyfile"):
        Config.resolve({}, environ)
    for others in ({"certfile": "x"}, {"certfile": "x", "keyfile": "y"}):
        with pytest.raises(ConfigError, match="ssl: certfile is given, too; say it in one of the two"):
            Config.resolve({"ssl": hook, **others}, {})
    config = Config.resolve({"certfile": "/other.pem"}, {"PYFANOUT_KEYFILE": "/key.pem"})
    assert (config.certfile, config.keyfile) == ("/other.pem", "/key.pem"), "these two go together"


@pytest.mark.parametrize(
    ("argument", "environ", "expected"),
    [
        (None, {}, 3),
        ("auto", {}, 3),
        (None, {"WEB_CONCURRENCY": "5"}, 5),
        ("auto", {"WEB_CONCURRENCY": "5"}, 5),
        (2, {"WEB_CONCURRENCY": "5"}, 2),
        ("2", {"WEB_CONCURRENCY": "rubbish"}, 2),
        (None, {"PYFANOUT_WORKERS": "4", "WEB_CONCURRENCY": "5"}, 4),
        (None, {"PYFANOUT_WORKERS": "auto", "WEB_CONCURRENCY": "5"}, 5),
        ("auto", {"PYFANOUT_WORKERS": "4", "WEB_CONCURRENCY": "5"}, 5),
        (None, {"WEB_CONCURRENCY": ""}, 3),
        (None, {"WEB_CONCURRENCY": "auto"}, 3),
    ],
)
def test_auto_workers(argument: object, environ: dict[str, str], expected: int) -> None:
    assert Config.resolve({"workers": argument}, environ).workers == expected


def test_auto_never_exceeds_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: 5000)
    assert Config().workers == Config(workers="auto").workers == 1024  # type: ignore[arg-type]


def test_jitter_is_a_tenth_unless_given() -> None:
    assert Config(max_requests=1000).jitter == 100
    assert Config(max_requests=1000, max_requests_jitter=0).jitter == 0
    assert Config(max_requests=1000, max_requests_jitter=7).jitter == 7


def test_open_sockets() -> None:
    with socket.socket() as sock:
        assert Config.resolve({"bind": sock}, {}).bind == (sock,)
        config = Config.resolve({"bind": [sock, ":80"]}, {})
        assert config.bind == (sock, ":80")
        assert f"bind = socket fd={sock.fileno()}, :80" in config.describe()


def test_unknown_argument() -> None:
    with pytest.raises(ConfigError, match=r"no option is named 'wokers'; did you mean workers\?"):
        Config.resolve({"wokers": 2}, {})


def test_unknown_variables_are_skipped_but_can_be_found() -> None:
    environ = {"PYFANOUT_WOKERS": "2", "PYFANOUT_BIND": ":1", "PYFANOUT_XYZZY": "x", "PATH": "/", "PYFANOUT_AS": "wsgi"}
    assert (Config.resolve({}, environ).workers, Config.resolve({}, environ).as_) == (3, "wsgi")
    assert unknown_variables(environ) == [
        "PYFANOUT_WOKERS is not an option; did you mean PYFANOUT_WORKERS?",
        "PYFANOUT_XYZZY is not an option",
    ]
    assert unknown_variables({"PYFANOUT_ON_WORKER_START": "app:start"})  # a hook is no text


def test_what_kubernetes_says_of_a_service_is_no_misspelt_option() -> None:
    address = {"PYFANOUT_PORT_80_TCP": "tcp://10.0.0.1:80", "PYFANOUT_PORT_80_TCP_ADDR": "10.0.0.1"}
    address |= {
        "PYFANOUT_PORT_80_TCP_PORT": "80",
        "PYFANOUT_PORT_80_TCP_PROTO": "tcp",
        "PYFANOUT_PORT": "tcp://10.0.0.1:80",
    }
    service = {"PYFANOUT_SERVICE_HOST": "10.0.0.1", "PYFANOUT_SERVICE_PORT": "80", "PYFANOUT_SERVICE_PORT_HTTP": "80"}
    other = {"PYFANOUT_ADMIN_SERVICE_HOST": "10.0.0.1", "PYFANOUT_ADMIN_PORT": "tcp://10.0.0.2:80"}
    assert unknown_variables(address | service | other) == []
    assert unknown_variables({"PYFANOUT_PORT": "8000"}) == ["PYFANOUT_PORT is not an option"], "a user's mistake"


def test_describe_is_stable_and_can_be_given_back() -> None:
    config = Config(bind=(":80", "unix:/x"), drain_timeout=2.5, nodelay=False, max_requests=10, unix_mode=Mode(0o60))
    lines = dict(line.split(" = ", 1) for line in config.describe().splitlines())
    assert list(lines) == [option.word for option in options().values() if not option.python_only]
    assert lines["bind"] == ":80, unix:/x"
    assert (lines["drain_timeout"], lines["boot_timeout"]) == ("2.5", "30")
    assert (lines["nodelay"], lines["pidfile"], lines["unix_mode"]) == ("no", "none", "060")
    assert lines["max_requests_jitter"] == "a tenth of max_requests"
    left_out = ("none", "a tenth of max_requests")
    given = {f"PYFANOUT_{word.upper()}": text for word, text in lines.items() if text not in left_out}
    assert Config.resolve({}, given) == config


def test_every_option_is_described() -> None:
    for name, option in options().items():
        assert option.help, name
        assert option.default, name
        assert option.variable == f"PYFANOUT_{option.word.upper()}"


def test_the_help_is_the_table_of_the_docs() -> None:
    """Beginning with it: the table may go on with links, which are of no use in `--help`."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", OPTIONS_MD.read_text(), re.M)
    table = {name: (flag, default, text) for name, flag, default, text in rows if name in options()}
    assert list(table) == list(options())
    for name, option in options().items():
        flag, default, text = table[name]
        assert flag == ("(Python only)" if option.python_only else f"`{option.flag}`")
        assert default == option.default
        assert text.startswith(option.help), name


@settings(deadline=None, database=None)
@given(
    st.sampled_from(sorted(options())),
    st.text() | st.integers() | st.floats() | st.lists(st.text()) | st.binary(),
)
def test_any_value_is_read_or_refused_in_one_line(name: str, value: object) -> None:
    try:
        Config.resolve({name: value}, {})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - it may also be allowed
