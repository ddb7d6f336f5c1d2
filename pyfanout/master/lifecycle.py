"""The life of a worker as a table. Pure: what happens next, never how.

`step(state, event)` says the next state and what `lives` shall do. A pair that is not in the table cannot
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
    STOPPING = auto()
    """Told to stop at once."""
    HUNG = auto()
    """Does not become ready in time, does not answer, or has one connection for too long: out of rotation, and told to
    say where it is and die."""
    KILLED = auto()
    """It was sent SIGKILL. If it does not die, the master can do nothing else: the kernel keeps it while it waits for a
    device or a file server."""
    GONE = auto()
    """Dead and reaped."""


class WorkerEvent(Enum):
    """To a worker."""

    SAID_READY = auto()
    SAID_RETIRING = auto()
    """It takes no more: the master, or another process, sent it a SIGTERM."""
    CHANNELS_ENDED = auto()
    """Graceful stop: it finds what is left in its channel, then end-of-file."""
    TOLD_TO_DRAIN = auto()
    """Another has taken its place, or its slot is not wanted any more, or it boots and nothing is left to serve."""
    TOLD_TO_STOP = auto()
    """Fast stop; or patience is over."""
    CHANNEL_BROKEN = auto()
    """A worker has shut down the channel that this one reads."""
    NOT_ENTERED = auto()
    """The system had no room to put it into rotation. It may have a client all the same, from the pool."""
    FOUND_HUNG = auto()
    TIME_IS_UP = auto()
    """It was in its state for longer than it may be."""
    DIED = auto()


class Action(Enum):
    """For `lives` to perform, in the order given."""

    ENTER = auto()
    """Into rotation."""
    LEAVE = auto()
    """Out of rotation; what it had not taken goes to others."""
    CLOSE = auto()
    """Its channel has an end, where it leaves: idle connections may go."""
    DRAIN = auto()
    """It is told to take no more, finish and exit."""
    QUIT = auto()
    """SIGQUIT: it stops now."""
    ABORT = auto()
    """SIGABRT: it writes down where its threads are, and dies."""
    KILL = auto()
    """SIGKILL."""
    REPLACE = auto()
    """Its slot wants another worker."""


class Step(NamedTuple):
    state: State
    actions: tuple[Action, ...] = ()


_B, _R, _D, _S, _H, _K, _G = (
    State.BOOTING,
    State.READY,
    State.DRAINING,
    State.STOPPING,
    State.HUNG,
    State.KILLED,
    State.GONE,
)

TRANSITIONS: dict[tuple[State, WorkerEvent], Step] = {
    (_B, WorkerEvent.SAID_READY): Step(_R, (Action.ENTER,)),
    (_B, WorkerEvent.SAID_RETIRING): Step(_D, (Action.REPLACE,)),
    (_B, WorkerEvent.CHANNELS_ENDED): Step(_B),  # it may be wanted: to serve what a dead one left in its channel
    # It may be ready by now, and have a client from the pool, although we have not read that yet.
    (_B, WorkerEvent.TOLD_TO_DRAIN): Step(_D, (Action.DRAIN,)),
    # Not SIGQUIT: before it has a handler for that, the signal would leave a core.
    (_B, WorkerEvent.TOLD_TO_STOP): Step(_S, (Action.DRAIN,)),
    (_B, WorkerEvent.CHANNEL_BROKEN): Step(_B),  # it finds out by itself
    (_B, WorkerEvent.TIME_IS_UP): Step(_H, (Action.ABORT,)),
    (_B, WorkerEvent.DIED): Step(_G, (Action.REPLACE,)),
    (_R, WorkerEvent.SAID_READY): Step(_R),  # said twice: no harm
    (_R, WorkerEvent.SAID_RETIRING): Step(_D, (Action.LEAVE, Action.REPLACE)),
    (_R, WorkerEvent.CHANNELS_ENDED): Step(_D),
    (_R, WorkerEvent.TOLD_TO_DRAIN): Step(_D, (Action.LEAVE, Action.DRAIN)),
    (_R, WorkerEvent.TOLD_TO_STOP): Step(_S, (Action.LEAVE, Action.QUIT)),
    # It leaves at the end of its channel.
    (_R, WorkerEvent.CHANNEL_BROKEN): Step(_D, (Action.LEAVE, Action.CLOSE, Action.REPLACE)),
    (_R, WorkerEvent.NOT_ENTERED): Step(_D, (Action.LEAVE, Action.DRAIN, Action.REPLACE)),
    (_R, WorkerEvent.FOUND_HUNG): Step(_H, (Action.LEAVE, Action.ABORT)),
    (_R, WorkerEvent.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
    (_D, WorkerEvent.SAID_READY): Step(_D),  # it crossed with what we asked
    (_D, WorkerEvent.SAID_RETIRING): Step(_D),
    (_D, WorkerEvent.CHANNELS_ENDED): Step(_D),
    (_D, WorkerEvent.TOLD_TO_DRAIN): Step(_D),
    (_D, WorkerEvent.TOLD_TO_STOP): Step(_S, (Action.QUIT,)),
    (_D, WorkerEvent.CHANNEL_BROKEN): Step(_D),
    (_D, WorkerEvent.TIME_IS_UP): Step(_S, (Action.QUIT,)),
    (_D, WorkerEvent.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
    (_S, WorkerEvent.SAID_READY): Step(_S),
    (_S, WorkerEvent.SAID_RETIRING): Step(_S),
    (_S, WorkerEvent.CHANNELS_ENDED): Step(_S),
    (_S, WorkerEvent.TOLD_TO_DRAIN): Step(_S),
    (_S, WorkerEvent.TOLD_TO_STOP): Step(_S),
    (_S, WorkerEvent.CHANNEL_BROKEN): Step(_S),
    (_S, WorkerEvent.TIME_IS_UP): Step(_K, (Action.KILL,)),
    (_S, WorkerEvent.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
    (_H, WorkerEvent.SAID_READY): Step(_H),
    (_H, WorkerEvent.SAID_RETIRING): Step(_H),  # too late: it has been judged, and its place is given away
    (_H, WorkerEvent.CHANNELS_ENDED): Step(_H),
    (_H, WorkerEvent.TOLD_TO_DRAIN): Step(_H),
    (_H, WorkerEvent.TOLD_TO_STOP): Step(_H),
    (_H, WorkerEvent.CHANNEL_BROKEN): Step(_H),
    (_H, WorkerEvent.TIME_IS_UP): Step(_K, (Action.KILL,)),
    (_H, WorkerEvent.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
    (_K, WorkerEvent.SAID_READY): Step(_K),
    (_K, WorkerEvent.SAID_RETIRING): Step(_K),
    (_K, WorkerEvent.CHANNELS_ENDED): Step(_K),
    (_K, WorkerEvent.TOLD_TO_DRAIN): Step(_K),
    (_K, WorkerEvent.TOLD_TO_STOP): Step(_K),
    (_K, WorkerEvent.CHANNEL_BROKEN): Step(_K),
    (_K, WorkerEvent.TIME_IS_UP): Step(_K, (Action.REPLACE,)),  # as if it had died
    (_K, WorkerEvent.DIED): Step(_G, (Action.LEAVE, Action.REPLACE)),
}


def step(state: State, happened: WorkerEvent) -> Step:
    """What follows. Raises LookupError, naming both, for a pair that cannot be."""
    try:
        return TRANSITIONS[state, happened]
    except KeyError:
        raise LookupError(f"a worker that is {state.name} cannot have {happened.name}") from None
