"""shortage: who was lost is said once."""

from __future__ import annotations

import pytest

from pyfanout.master.shortage import Shortage


def test_who_was_lost_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shortage = Shortage()
    for count in (0, 2, 2, 3):
        shortage.lost(count)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "2 are lost, 2 since the start",
        "1 are lost, 3 since the start",
    ]
