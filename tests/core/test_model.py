"""csrc/feeding.pml: spin finds nobody who is left waiting or doubled, in any interleaving; it does find somebody when a
part is left out of the model; and what the model says of the code is still so.

`make faults` has more clients in it: minutes, and up to 10 GB.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc"
MODEL = SOURCES / "feeding.pml"
SEARCH_S = 900
"""For the largest. The short ones take seconds."""
DEPTH = 200_000

POOL, OWN = ("-DPOOL",), ()
SHORT = [(*POOL, "-DCLIENTS=1"), (*OWN, "-DCLIENTS=2"), (*OWN, "-DCLIENTS=2", "-DSIZE=3", "-DQUARTER=1")]
LONG = [(*POOL, "-DCLIENTS=2"), (*OWN, "-DCLIENTS=3"), (*OWN, "-DCLIENTS=4", "-DSIZE=3", "-DQUARTER=1")]
ALL = os.environ.get("FAULTS") == "all"
CASES = LONG if ALL else SHORT
COMPILED = ("-O2", "-DCOLLAPSE") if ALL else ("-O1",)
"""The short ones are over before -O2 has paid, and have room for whole states: 600 MB, not 330, in 2/3 of the time."""
WITHOUT = [
    (*POOL, "-DCLIENTS=1", "-DWITHOUT_LOOK"),
    (*POOL, "-DCLIENTS=1", "-DWITHOUT_PEEK"),
    (*OWN, "-DCLIENTS=2", "-DWITHOUT_RECALL"),
    (*OWN, "-DCLIENTS=2", "-DWITHOUT_SUCCESSOR"),
]


def search(folder: Path, options: tuple[str, ...]) -> str:
    """What spin says of every state that can be reached."""

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SEARCH_S, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    run("spin", *options, "-a", str(MODEL))
    run("cc", *COMPILED, "-w", "-DSAFETY", "-DMEMLIM=12000", "-o", "pan", "pan.c")
    said = run("./pan", f"-m{DEPTH}")
    assert "Full statespace search" in said
    assert "max search depth too small" not in said
    assert "memory" not in said.partition("errors:")[0], said
    return said


def errors_in(said: str) -> int:
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("options", CASES, ids=" ".join)
def test_every_interleaving(options: tuple[str, ...], tmp_path: Path) -> None:
    said = search(tmp_path, options)
    print(*re.findall(r".*states, stored", said))
    assert errors_in(said) == 0, said
    unreached = re.findall(r'state \d+, "(.*)"', said.partition("unreached in proctype Master")[2])
    assert "over = 1" not in unreached, "no run of the model ever ended"


@pytest.mark.parametrize("options", WITHOUT, ids=" ".join)
def test_without_it_somebody_is_left(options: tuple[str, ...], tmp_path: Path) -> None:
    """Else the model would say nothing about the code."""
    said = search(tmp_path, options)
    assert errors_in(said) == 1, said
    assert "assertion violated" in said


# ---- the model is of this code ---------------------------------------------------------------------------------------

C = re.sub(r"/\*.*?\*/", "", "".join(path.read_text() for path in SOURCES.glob("*.[ch]")), flags=re.S)
"""Without comments."""
PYTHON = "".join(path.read_text() for path in (ROOT / "pyfanout").rglob("*.py"))


def body_of(function: str) -> str:
    found = re.search(rf"^(?:static )?[a-z_0-9 ]+ \*?{function}\([^;]*?\)\n\{{\n(.*?)^\}}", C, re.M | re.S)
    assert found, f"there is no function {function} in csrc/"
    return found[1]


def test_what_it_names_is_there() -> None:
    named = re.findall(r"\[([A-Za-z_., ]+)\] ?\*/", MODEL.read_text())
    assert len(named) > 20
    for name in (each.strip() for names in named for each in names.split(",")):
        pattern = rf"\bdef {name.rpartition('.')[2]}\(" if "." in name or name == "spawn" else rf"\b{name}\b"
        assert re.search(pattern, PYTHON if "def" in pattern else C), name


def test_its_numbers_are_the_codes() -> None:
    """How few are taken is right for any number; that they are whole batches, quarters and one nudge is what counts.
    That the kernel is hungry at this quarter: tests/core/test_channel.py."""
    number = {name: int(value) for name, value in re.findall(r"#define (\w+) \(?(-?\d+)\)?", C)}
    assert number["FAN_BATCH"] >= 2
    assert number["FAN_NUDGE"] < 0
    assert "channel->quarter = (granted / 4 - 1) / message_bytes;" in body_of("fan_channel_resize")
    assert "channel->untaken <= channel->quarter" in body_of("ask_kernel")
    assert re.search(r"channel->untaken > channel->quarter\)\s+channel->space = 0;", body_of("pass_to"))
    assert "channel->nudges < idle" in body_of("look_at")


ORDERS = [
    ("fan_core_run", ["keep_time", "fan_core_dispatch", "fan_core_finish_if_done", "wait_for"]),
    ("fan_core_dispatch", ["total_space", "fan_accept_finish_empty", "refill", "pass_held"]),
    ("refill", ["recall_batch", "fan_accept_batch"]),
    ("pass_held", ["fan_route", "pass_to"]),
    ("fan_core_finish_if_done", ["core->held_count > 0", "listeners", "recalling", "shutdown"]),
    ("fan_seat_enter", ["entered = true", "recalling = false", "space = 0"]),
    ("fan_seat_leave", ["entered = false", "recalling", "fan_channel_nudge"]),
    ("channel_writable", ["armed = false", "space =", "listeners_may_have_more"]),
    ("fan_take_wait", ["fan_score_idle_now", "sleeping, true", "cancelled", "wait_in_turn", "sleeping, false"]),
    ("wait_in_turn", ["fan_turns_enter", "fan_channel_wait", "fan_turns_wait"]),
    ("chance_of", ["messages <= 0 ? SLEEP", "messages > others ? TAKE"]),
    ("fan_take", ["fan_turns_free", "fan_score_busy_now", "receive_if_room", "fan_score_took", "fan_score_idle_now"]),
    ("fan_channel_wait", ["MSG_PEEK"]),
]


def test_who_is_wanted_in_a_stop_is_decided_so() -> None:
    """WANTED in the model, `wants_another` in the code."""
    found = re.search(r"def wants_another\(.*?\n    # ", PYTHON, re.S)
    assert found
    order = ["Phase.SERVING", "self.ever_ready", "Phase.LATE, Phase.AT_ONCE", "Phase.FINISHING"]
    order += ["each.state is State.BOOTING", "each.ready.pool and", "in _READING", "untaken(slot.seat) > 0"]
    order += ["not pooled and self._core.untaken(POOL) > 0"]
    places = [found[0].find(each) for each in order]
    assert -1 not in places, dict(zip(order, places, strict=True))
    assert places == sorted(places), dict(zip(order, places, strict=True))


@pytest.mark.parametrize(("function", "steps"), ORDERS, ids=[function for function, _ in ORDERS])
def test_its_steps_come_in_this_order(function: str, steps: list[str]) -> None:
    """The last of each, for what is done in a special case comes before."""
    body = body_of(function)
    places = [body.rfind(step) for step in steps]
    assert -1 not in places, dict(zip(steps, places, strict=True))
    assert places == sorted(places), dict(zip(steps, places, strict=True))
