"""kind: which server serves which."""

from __future__ import annotations

from typing import Any

import pytest

from pyfanout.embed import Runner, runner_of
from pyfanout.errors import ConfigError, LoadError
from pyfanout.kind import Kind
from pyfanout.servers import OWN


class Own(Runner):
    def serve(self, worker: Any) -> None: ...


class Missing(Own):
    needs = ("no_such_server",)
    extra = "asgi"


def wsgi(environ: Any, start_response: Any) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize("server", list(OWN))
@pytest.mark.parametrize("kind", [Kind.WSGI, Kind.ASGI])
def test_a_server_serves_its_kind_only(server: str, kind: Kind) -> None:
    app: Any = asgi if kind is Kind.ASGI else wsgi
    if kind in OWN[server].kinds:
        assert type(runner_of(app, kind, server)).__module__ == f"pyfanout.embed.{server}"
    else:
        with pytest.raises(ConfigError, match=f"server: {server} does not serve {kind.value} applications; .* do"):
            runner_of(app, kind, server)


def test_the_defaults() -> None:
    assert type(runner_of(asgi, Kind.ASGI, "auto")).__module__ == "pyfanout.embed.uvicorn"
    assert type(runner_of(wsgi, Kind.WSGI, "auto")).__module__ == "pyfanout.embed.waitress"


def test_what_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(LoadError) as caught:
        runner_of(Missing(), Kind.RUNNER, "auto")
    assert str(caught.value) == "no_such_server is not installed: pip install 'pyfanout[asgi]'"
