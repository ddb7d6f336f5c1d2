"""callbacks: which function is called for which event; one that fails changes nothing."""

from __future__ import annotations

import sys

import pytest

from pyfanout.errors import ConfigError
from pyfanout.master import callbacks as module
from pyfanout.master.callbacks import EVENTS, Callbacks, Notice


def test_they_are_called_in_the_order_in_which_they_were_added() -> None:
    callbacks, called = Callbacks(), []
    for number in (1, 2, 3):
        callbacks.add("ready", lambda notice, number=number: called.append((number, notice.detail)))  # type: ignore[misc]  # mypy infers no type of a lambda with a default
    callbacks.post(Notice("ready", None, "x"))
    callbacks.post(Notice("exit", None, "no function was added for it"))
    assert (callbacks.due, called) == (True, [])
    callbacks.run()
    assert (callbacks.due, called) == (False, [(1, "x"), (2, "x"), (3, "x")])


def test_what_happens_in_a_callback_comes_after_it() -> None:
    """And after what had happened before."""
    callbacks, called = Callbacks(), []

    def first(notice: Notice) -> None:
        called.append(f"first {notice.detail}")
        if notice.detail == "1":
            callbacks.post(Notice("reload", None, "of the callback"))
        called.append(f"end {notice.detail}")

    callbacks.add("drain", first)
    callbacks.add("reload", lambda notice: called.append(notice.detail))
    callbacks.post(Notice("drain", None, "1"))
    callbacks.post(Notice("drain", None, "2"))
    callbacks.run()
    assert called == ["first 1", "end 1", "first 2", "end 2", "of the callback"]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_without_a_function_does_not_wait(event: str) -> None:
    callbacks = Callbacks()
    callbacks.post(Notice(event, None, ""))
    assert not callbacks.due
    callbacks.add(event, lambda _: None)
    callbacks.post(Notice(event, None, ""))
    assert callbacks.due


def test_one_that_fails_is_logged_and_the_others_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks, called, logged = Callbacks(), [], []

    def fail(notice: Notice) -> None:
        raise ValueError("as asked")

    monkeypatch.setattr(module.log, "exception", lambda line, *args: logged.append((line % args, sys.exception())))
    callbacks.add("hang", fail)
    callbacks.add("hang", called.append)
    callbacks.post(Notice("hang", None, ""))
    callbacks.run()
    assert len(called) == 1
    ((line, error),) = logged
    assert (line, repr(error)) == (
        "a callback for 'hang' raised an exception; the master goes on",
        "ValueError('as asked')",
    )


@pytest.mark.parametrize(
    ("event", "callback", "words"),
    [("exits", print, "no event is named 'exits': fork, ready,"), ("exit", 3, "on 'exit': 3 is not a function")],
)
def test_what_cannot_be_called_is_refused(event: str, callback: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Callbacks().add(event, callback)  # type: ignore[arg-type]  # what a program without types may pass
