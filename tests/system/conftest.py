"""Names that all tests of whole servers share."""

from __future__ import annotations

import pytest

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "blocking": ("act", {}),
    "threads": ("act", {"threads": 3}),
    "asyncio": ("act_async", {}),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of worker in turn."""
    return str(request.param)


@pytest.fixture
def handler(kind: str) -> str:
    """The name in `apps` of the handler that does what it is asked, for this kind."""
    return KINDS[kind][0]


@pytest.fixture
def options(kind: str) -> dict[str, object]:
    """What `Server.start` needs besides, for this kind."""
    return dict(KINDS[kind][1])
