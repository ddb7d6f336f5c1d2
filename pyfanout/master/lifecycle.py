"""The life of a worker as a table. Pure: what happens next, never how.

`step(state, event)` says the next state and what the supervisor shall do. A pair that is not in the table cannot
happen, or is our bug: it raises. What a worker may say at any time, in any order, is in the table for every state.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class State(Enum):
    """Of one worker, which is one process of one generation in one slot."""

    BOOTING = auto()
    """Forked; not yet READY."""
    READY = auto()
    """In rotation."""
    DRAINING = auto()
    """Takes nothing new; finishes what it has begun."""
    GONE = auto()
    """Dead and reaped."""


class Happened(Enum):
    """To a worker."""

    SAID_READY = auto()
    SAID_RETIRING = auto()
    CHANNELS_ENDED = auto()
    """Graceful stop: it finds what is left in its channel, then end-of-file."""
    TOLD_TO_STOP = auto()
    """Fast stop."""
    CHANNEL_BROKEN = auto()
    """A worker has shut down the channel that this one reads."""
    BOOT_TIMED_OUT = auto()
    DRAIN_TIMED_OUT = auto()
    DIED = auto()


class Action(Enum):
    """For the supervisor to perform, in the order given."""

    ENTER = auto()
    """Into rotation."""
    LEAVE = auto()
    """Out of rotation; what it had not taken goes to others."""
    TERMINATE = auto()
    """SIGTERM: it takes nothing new, finishes, exits."""
    QUIT = auto()
    """SIGQUIT: it stops now."""
    KILL = auto()
    """SIGKILL."""
    REPLACE = auto()
    """Its slot wants another worker."""


class Step(NamedTuple):
    state: State
    actions: tuple[Action, ...] = ()


_B, _R, _D, _G = State.BOOTING, State.READY, State.DRAINING, State.GONE

TRANSITIONS: dict[tuple[State, Happened], Step] = {
    (_B, Happened.SAID_READY): Step(_R, (Action.ENTER,)),
    (_B, Happened.SAID_RETIRING): Step(_D),
    (_B, Happened.CHANNELS_ENDED): Step(_B),  # it may be wanted: to serve what a dead one left in its channel
    (_B, Happened.TOLD_TO_STOP): Step(_D, (Action.QUIT,)),
    (_B, Happened.BOOT_TIMED_OUT): Step(_D, (Action.KILL,)),
    (_B, Happened.CHANNEL_BROKEN): Step(_B),  # it finds out by itself
    (_B, Happened.DRAIN_TIMED_OUT): Step(_D, (Action.QUIT,)),
    (_B, Happened.DIED): Step(_G, (Action.REPLACE,)),
    (_R, Happened.SAID_READY): Step(_R),  # said twice: it harms nobody
    (_R, Happened.SAID_RETIRING): Step(_D, (Action.LEAVE,)),
    (_R, Happened.CHANNELS_ENDED): Step(_D),
    (_R, Happened.TOLD_TO_STOP): Step(_D, (Action.LEAVE, Action.QUIT)),
    (_R, Happened.CHANNEL_BROKEN): Step(_D, (Action.LEAVE, Action.TERMINATE)),
    (_R, Happened.DRAIN_TIMED_OUT): Step(_D, (Action.LEAVE, Action.QUIT)),
    (_R, Happened.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
    (_D, Happened.SAID_READY): Step(_D),  # it crossed with what we asked
    (_D, Happened.SAID_RETIRING): Step(_D),
    (_D, Happened.CHANNELS_ENDED): Step(_D),
    (_D, Happened.TOLD_TO_STOP): Step(_D, (Action.QUIT,)),
    (_D, Happened.CHANNEL_BROKEN): Step(_D),
    (_D, Happened.BOOT_TIMED_OUT): Step(_D, (Action.KILL,)),  # told to stop while it booted, or drained by its hook
    (_D, Happened.DRAIN_TIMED_OUT): Step(_D, (Action.QUIT,)),
    (_D, Happened.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
}


def step(state: State, happened: Happened) -> Step:
    """What follows. Raises LookupError, naming both, for a pair that cannot be."""
    try:
        return TRANSITIONS[state, happened]
    except KeyError:
        raise LookupError(f"a worker that is {state.name} cannot have {happened.name}") from None
