"""Options of other servers (gunicorn, uvicorn, hypercorn, waitress, uWSGI, PM2), and what to write for them here.

Answers a user who types from habit. Knows words only: reads no option, and is called by `pyfanout.cli` before the
parser, because argparse would take the value of a flag that it does not know for the application.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Collection, Iterable, Sequence

from pyfanout.errors import ConfigError

_RUNNER = (
    "options of the server are arguments of its runner, in Python:"
    " runner = pyfanout.embed.uvicorn.Runner(app, ...), then pyfanout run module:runner (docs/embedding.md, Recipes)"
)
_TLS = "only --certfile and --keyfile are flags; for all else give pyfanout.serve(app, ssl=...) an ssl.SSLContext"
_FILES = (
    "pyfanout does not watch files; to reload the application, send the master SIGHUP: "
    "kill -HUP $(cat PIDFILE), with --pidfile PIDFILE"
)
_USER = (
    "start pyfanout as that user, with sudo -u or systemd's User= and Group=; "
    "for a port below 1024 let systemd open it: --bind systemd"
)
_ACCESS = "pyfanout speaks no HTTP and has no access log; log requests in the application, or in the proxy before it"
_LOG = "log lines go to stderr, or where the application's own logging says; for a file write 2>>{value:FILE}"
_CONFIG = "there is no configuration file; write flags, variables such as PYFANOUT_WORKERS=4, or call pyfanout.serve()"
_NEEDLESS = "it is not needed: one process accepts all connections and passes them to workers, which it pings"
_PROXY = (
    "what a server believes of X-Forwarded-* is an option of its runner, such as"
    " pyfanout.embed.uvicorn.Runner(app, forwarded_allow_ips=...) (docs/embedding.md, Behind a proxy)"
)
_KEEP_ALIVE = (
    "how long a connection may be idle is an option of the server's runner, such as"
    " pyfanout.embed.uvicorn.Runner(app, timeout_keep_alive={value:5})"
)
_CLASS = (
    "choose the server with --server: uvicorn or hypercorn for ASGI; waitress, cheroot, gevent or wsgiref for WSGI;"
    " or stay with gunicorn: gunicorn -k pyfanout.embed.gunicorn.GThread"
)
_MODE = "for a socket file write --unix-mode 660; for files that the application makes write umask before the command"

ANSWERS: dict[str, str] = {}
"""By flag, short and long. `{value:4}` is the value that was given, or 4."""


def _say(answer: str, flags: str) -> None:
    ANSWERS.update(dict.fromkeys(flags.split(), answer))


_say("write --bind unix:{value:PATH}", "--uds --unix-socket")
_say("write --bind fd://{value:3}", "--fd")
_say("write --bind {value:127.0.0.1:8000}", "--listen --http-socket --insecure-bind")
_say("write --workers N, or --workers auto for one for each CPU", "-i --instances --processes")
_say(_CLASS, "-k --worker-class")
_say("write --max-connections {value:1000}", "--worker-connections --limit-concurrency")
_say("write --max-requests {value:1000}", "--limit-max-requests")
_say("write --max-requests-jitter {value:100}", "--limit-max-requests-jitter")
_say("write --drain-timeout {value:25}", "--graceful-timeout --timeout-graceful-shutdown --kill-timeout")
_say("write --ping-timeout {value:5}", "--timeout-worker-healthcheck")
_say("write --timeout {value:30}", "-t --harakiri")
_say(_KEEP_ALIVE, "--keep-alive --timeout-keep-alive")
_say("write --pidfile {value:PATH}", "-p --pid")
_say("write --as asgi, --as wsgi or another kind", "--interface")
_say("write --factory module:function", "--call")
_say("write --certfile {value:PATH}", "--ssl-certfile")
_say("write --keyfile {value:PATH}", "--ssl-keyfile")
_say("write --trusted {value:127.0.0.1}", "--proxy-allow-from")
_say("write --unix-mode {value:660}", "--unix-socket-perms --chmod-socket")
_say("write --app-dir {value:PATH}, or set PYTHONPATH", "--pythonpath")
_say("write pyfanout --version", "-v")
_say("write --check-config, which prints all options", "--print-config")
_say("write PYFANOUT_... or other variables before the command, such as {value:NAME=value} pyfanout run", "-e --env")
_say("set the variables before the command, with `set -a; . {value:FILE}` or systemd's EnvironmentFile=", "--env-file")
_say(_CONFIG, "-c --config --ini")
_say(_FILES, "--reload --reload-engine --reload-extra-file --reload-dir --reload-include --reload-exclude --watch")
_say(_FILES, "--reload-delay")
_say("pyfanout stays in the foreground; let systemd or a container start it", "-D --daemon --daemonize")
_say(_USER, "-u --user -g --group --initgroups --uid --gid")
_say(_MODE, "-m --umask")
_say(_ACCESS, "--access-logfile --access-logformat --access-log --no-access-log")
_say(_LOG, "--error-logfile --log-file --logto")
_say(
    "log lines go to stderr, or where the application's own logging says; configure that",
    "--log-config --log-config-json --log-syslog --log-syslog-to --log-syslog-prefix --log-syslog-facility "
    "--logger-class --capture-output --disable-redirect-access-to-syslog --use-colors --no-use-colors "
    "-R --enable-stdio-inheritance",
)
_say(
    "pyfanout sends no statistics; Master.workers and its callbacks have them, in Python",
    "--statsd-host --statsd-prefix --dogstatsd-tags --enable-backlog-metric",
)
_say("a process keeps its name; the log, --pidfile and systemd's unit tell which is the master", "-n --name")
_say(_PROXY, "--forwarded-allow-ips --proxy-headers --no-proxy-headers --forwarder-headers")
_say(_NEEDLESS, "--reuse-port --worker-tmp-dir")
_say("signals control it (docs/signals.md)", "--control-socket --control-socket-mode --no-control-socket")
_say(
    "it does not exist here; a task that is no request belongs in a process of its own",
    "--dirty-app --dirty-workers --dirty-timeout --dirty-threads --dirty-graceful-timeout",
)
_say("it does not exist here; run it under a debugger (docs/debugging.md)", "--spew --debug")
_say("give the application itself: module:attr, whose module loads the file", "--paste --paster --paste-global")
_say(
    _TLS,
    "--ssl-keyfile-password --ssl-version --ssl-cert-reqs --ssl-ca-certs --ssl-ciphers --cert-reqs --ca-certs "
    "--suppress-ragged-eofs --do-handshake-on-connect --ciphers",
)
_say(
    _RUNNER,
    "--loop --http --http2 --ws --ws-max-size --ws-max-queue --ws-ping-interval --ws-ping-timeout "
    "--ws-per-message-deflate --lifespan --server-header --no-server-header --date-header --no-date-header "
    "--header --root-path --h11-max-incomplete-event-size --reset-contextvars --no-sendfile --limit-request-line "
    "--limit-request-fields --limit-request-field_size --protocol --uwsgi-allow-from --http-protocols "
    "--http2-cleartext --http2-max-concurrent-streams --http2-initial-window-size --http2-max-frame-size "
    "--http2-max-header-list-size --permit-obsolete-folding --strip-header-spaces "
    "--permit-unconventional-http-method --permit-unconventional-http-version --casefold-http-method --header-map "
    "--asgi-loop --asgi-lifespan --asgi-disconnect-grace-period --websocket-max-message-size --http-parser",
)


def check(arguments: Sequence[str], verbs: Collection[str], ours: Collection[str]) -> None:
    """Raises ConfigError, one line that says what to write, if `arguments`, those of the command, have an option of
    another server, or an application without the verb `run`. `ours` are the flags of `run`."""
    if arguments and arguments[0] not in verbs and any(map(_is_application, arguments)):
        raise ConfigError(f"the verb is missing; write {shlex.join(['pyfanout', 'run', *arguments])}")
    given = dict(_given(arguments))
    if "--host" in given or "--port" in given:
        host, port = given.get("--host") or "127.0.0.1", given.get("--port") or "8000"
        address = shlex.quote(f"{_in_brackets(host)}:{port}")
        raise ConfigError(f"--host and --port are no options here: write --bind {address}")
    for flag, value in given.items():
        if flag not in ours and flag in ANSWERS:
            raise ConfigError(f"{flag} is no option here: {_filled(ANSWERS[flag], value)}")


def _given(arguments: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each flag with its value, which is empty if there seems to be none."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            yield flag, value if equals else _value(following)
        elif argument.startswith("-"):  # -k gevent and -kgevent
            yield argument[:2], argument[2:] or _value(following)


def _value(following: str) -> str:
    return "" if following.startswith("-") or _is_application(following) else following


def _is_application(argument: str) -> bool:
    """`module:attr`, or the name of a file. `127.0.0.1:8000` is none, nor `unix:name`."""
    module, colon, attribute = argument.partition(":")
    names = all(part.isidentifier() for part in f"{module}.{attribute}".split("."))
    return bool(colon and names and module != "unix") or argument.endswith(".py")


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _filled(answer: str, value: str) -> str:
    """With the value in the place of its name."""
    while "{value:" in answer:
        before, _, rest = answer.partition("{value:")
        name, _, after = rest.partition("}")
        answer = before + (shlex.quote(value) if value else name) + after
    return answer
