"""A receipt reports the end of its connection once, from whatever has it."""

from __future__ import annotations

import threading

import pytest

from pyfanout.worker.receipt import CLOSED, Receipt


def test_it_reports_when_it_is_closed_first() -> None:
    reports: list[str] = []
    receipt = Receipt(lambda: reports.append("ended"))
    assert receipt.is_open
    assert reports == []
    assert receipt.close()
    assert not receipt.is_open
    assert not receipt.close()
    assert reports == ["ended"]


def test_one_that_has_moved_reports_nothing() -> None:
    reports: list[str] = []
    receipt = Receipt(lambda: reports.append("ended"))
    moved = receipt.move()
    assert (receipt.is_open, moved.is_open) == (False, True)
    assert not receipt.close()
    assert reports == []
    assert moved.close()
    assert reports == ["ended"]


def test_one_that_is_closed_moves_as_closed() -> None:
    receipt = Receipt(lambda: None)
    receipt.close()
    assert receipt.move() is CLOSED
    assert not CLOSED.is_open
    assert not CLOSED.close()


def test_a_report_that_closes_it_again() -> None:
    """As when a connection is collected while its end is reported."""
    reports: list[bool] = []
    receipt = Receipt(lambda: reports.append(receipt.close()))
    assert receipt.close()
    assert reports == [False]


def test_a_report_that_fails_was_made() -> None:
    receipt = Receipt(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        receipt.close()
    assert not receipt.close()


def test_threads_that_close_it_at_once() -> None:
    for _ in range(50):
        reports: list[str] = []
        receipt = Receipt(lambda reports=reports: reports.append("ended"))  # type: ignore[misc]  # a default, not a cell
        barrier = threading.Barrier(4)

        def close(receipt: Receipt = receipt, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            receipt.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reports == ["ended"]
