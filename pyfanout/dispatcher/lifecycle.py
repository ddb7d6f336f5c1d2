"""The life of a joined worker as a table, as far as its dispatcher decides it. Pure: what happens next, never how.

Its birth and its death are another program's affair: here it exists while its control socket is open.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class State(Enum):
    """Of one joined worker."""

    JOINED = auto()
    """Not yet READY."""
    READY = auto()
    """In rotation, unless an Obstacle keeps it out."""
    SPENT = auto()
    """It wants to leave, and serves until another can take its connections."""
    LEAVING = auto()
    """It takes no more."""
    GONE = auto()
    """Its control socket is closed."""


class Obstacle(Enum):
    """Why a worker that serves is out of rotation for a while: others get its connections."""

    SILENT = auto()
    """It owes an answer to a ping."""
    STUCK = auto()
    """Each of its threads has been in the same request for too long."""
    SHORT = auto()
    """It has said that it cannot take connections."""


class JoinedEvent(Enum):
    """To a joined worker."""

    SAID_READY = auto()
    WANTS_SUCCESSOR = auto()
    SAID_RETIRING = auto()
    RELEASED = auto()
    """Others can take its connections, or it has waited for them long enough."""
    CHANNEL_BROKEN = auto()
    """A worker has shut down the channel that this one reads."""
    CLOSED = auto()
    """It has closed its control socket, or sent what cannot be read there."""


class Action(Enum):
    """For the dispatcher to perform, in the order given. In rotation or not follows from the state."""

    REENTER = auto()
    """Out of rotation, and in again: its limit may be another."""
    DRAIN = auto()
    """It is told to take no more, finish and exit."""
    FORGET = auto()
    """Its seat is free."""


class Step(NamedTuple):
    state: State
    actions: tuple[Action, ...] = ()


_J, _R, _S, _L, _G = State

TRANSITIONS: dict[tuple[State, JoinedEvent], Step] = {
    (_J, JoinedEvent.SAID_READY): Step(_R),
    (_J, JoinedEvent.WANTS_SUCCESSOR): Step(_S),
    (_J, JoinedEvent.SAID_RETIRING): Step(_L),
    (_J, JoinedEvent.CHANNEL_BROKEN): Step(_J),  # it finds out by itself
    (_J, JoinedEvent.CLOSED): Step(_G, (Action.FORGET,)),
    (_R, JoinedEvent.SAID_READY): Step(_R, (Action.REENTER,)),
    (_R, JoinedEvent.WANTS_SUCCESSOR): Step(_S),
    (_R, JoinedEvent.SAID_RETIRING): Step(_L),
    (_R, JoinedEvent.CHANNEL_BROKEN): Step(_L),  # it leaves at the end of its channel
    (_R, JoinedEvent.CLOSED): Step(_G, (Action.FORGET,)),
    (_S, JoinedEvent.SAID_READY): Step(_S, (Action.REENTER,)),
    (_S, JoinedEvent.WANTS_SUCCESSOR): Step(_S),
    (_S, JoinedEvent.SAID_RETIRING): Step(_L),
    (_S, JoinedEvent.RELEASED): Step(_L, (Action.DRAIN,)),
    (_S, JoinedEvent.CHANNEL_BROKEN): Step(_L),
    (_S, JoinedEvent.CLOSED): Step(_G, (Action.FORGET,)),
    (_L, JoinedEvent.SAID_READY): Step(_L),  # it crossed with what it was told
    (_L, JoinedEvent.WANTS_SUCCESSOR): Step(_L),
    (_L, JoinedEvent.SAID_RETIRING): Step(_L),
    (_L, JoinedEvent.CHANNEL_BROKEN): Step(_L),
    (_L, JoinedEvent.CLOSED): Step(_G, (Action.FORGET,)),
}


def step(state: State, happened: JoinedEvent) -> Step:
    """What follows. Raises LookupError, naming both, for a pair that cannot be."""
    try:
        return TRANSITIONS[state, happened]
    except KeyError:
        raise LookupError(f"a joined worker that is {state.name} cannot have {happened.name}") from None
