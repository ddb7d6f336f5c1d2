"""The bench does what it says: order of the rounds, bounds, servers that answer and leave nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import truediv
from pathlib import Path
from typing import Any

import pytest

from bench import installed, life, loadgen, losses, procfs, questions, runner, standings, table
from bench.field import BY_NAME
from bench.model import Asked, Context, Question, Sample
from bench.questions import RUNS
from bench.runner import choose_cores
from bench.server import Server, ServerError, free_port

OURS, THEIRS = "pyfanout blocking, least-connections", "shared listener blocking"
BOUNDS = {"at least": 1.05, "no round under": 0.95}
ASKED = Asked("{:.2f}", BOUNDS, of=truediv)
RACE = Question("race", "race", "per s", "speed", lambda *_: {}, (OURS, THEIRS), less_is_better=False, asked=ASKED)


def answers(ours: list[float], theirs: list[float], **more: Any) -> list[Sample]:
    return [
        Sample("race", subject, round_, {"speed": value, "errors": {}, **more})
        for subject, rounds in ((OURS, ours), (THEIRS, theirs))
        for round_, value in enumerate(rounds)
    ]


def verdict(question: Question, found: list[Sample]) -> str:
    ((*_, said),) = table.bounds([question], found)
    return said


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([11, 12, 13], [10, 10, 10], "reached; pyfanout is better"),
        ([11, 22, 33], [10, 20, 30], "reached; overlap"),  # better in each round, but the spreads overlap
        ([11, 19, 33], [10, 20, 30], "reached; overlap"),
        ([11, 18, 33], [10, 20, 30], "**missed**; overlap"),  # one round at 0.90
        ([9, 9, 9], [10, 11, 12], "**missed**; **better than pyfanout**"),
        ([10, 20, 30], [10, 20, 30], "**missed**; overlap"),
        ([11, 22], [10, 20], "reached; too few rounds to rank"),
    ],
)
def test_bounds_are_of_ratios_within_rounds(ours: list[float], theirs: list[float], said: str) -> None:
    assert verdict(RACE, answers(ours, theirs)) == said


def test_less_is_better_where_it_is() -> None:
    asked = Asked("{:.2f}", {"at most": 1.03}, of=truediv)
    question = replace(RACE, less_is_better=True, asked=asked)
    assert verdict(question, answers([9, 9, 9], [10, 10, 10])) == "reached; pyfanout is better"
    assert verdict(question, answers([11, 11, 11], [10, 10, 10])) == "**missed**; **better than pyfanout**"


def test_of_the_starts_of_a_round_the_median_counts() -> None:
    found = [
        Sample("race", subject, round_, {"speed": speed, "errors": {}}, start)
        for subject, speeds in ((OURS, (10, 30, 11)), (THEIRS, (10, 10, 10)))
        for round_ in range(3)
        for start, speed in enumerate(speeds)
    ]
    (line,) = [line for line in standings.lines(RACE, found) if line.pairs]
    assert line.pairs == [(11, 10)] * 3


def test_errors_and_what_should_not_have_been_stand_beside_the_verdict() -> None:
    found = answers([11] * 3, [10] * 3)
    found[-1].values["errors"] = {"reset": 2, "timeout": 1}
    assert verdict(RACE, found) == f"reached; pyfanout is better; failed of {THEIRS}: 2 reset, 1 timeout"
    alone = replace(RACE, subjects=(OURS,), asked=Asked("{:.2f}", {"at least": 1}))
    found = answers([11] * 3, [], detail="12 kills", missed="old workers have left")
    assert verdict(alone, found) == "**missed**; old workers have left; 12 kills"


def test_a_busy_machine_is_said() -> None:
    quiet, loud = answers([1, 2], [])
    quiet.values["others_cpu"] = 0.02
    loud.values["others_cpu"] = 0.35
    assert table.noise([quiet]) == ""
    assert "not quiet**: other processes used up to 35% of a core, during race" in table.noise([quiet, loud])


def test_a_row_without_its_rival_is_left_out() -> None:
    assert table.bounds([RACE], answers([1, 2], [])) == []


def test_every_question_reads_samples_of_one_that_measures() -> None:
    for run in RUNS.values():
        measuring = {each.name: each for each in run.questions if not each.measured_by}
        assert {each.experiment for each in run.questions} == set(measuring)
        for each in run.questions:
            assert set(each.subjects) <= set(measuring[each.experiment].subjects), each.name
    names = [each.name for each in questions.ALL]
    assert len(names) == len(set(names))


def test_rounds_are_interleaved_and_the_order_rotates() -> None:
    run = RUNS["dispatch"]
    some = questions.selected(run, ["throughput-blocking", "tail-50"], [], quick=False)
    speed = [("throughput-blocking-one-core", (OURS, "SO_REUSEPORT blocking"))]
    tail = [("tail-50", (OURS, THEIRS))]
    found: dict[tuple[int, int, str], list[str]] = {}
    for step in runner.steps(some, replace(run.full, rounds=2, starts=2)):
        found.setdefault((step.round, step.start, step.question.name), []).append(step.subject.name)
    plan = [(round_, start, name, order) for (round_, start, name), order in found.items()]
    expected = []
    for round_ in range(2):
        for kind, starts in ((speed, 2), (tail, 1)):
            for start in range(starts):
                ((name, order),) = kind
                turned = order[::-1] if (round_ * starts + start) % 2 else order
                expected.append((round_, start, name, [*turned]))
    assert plan == expected
    with pytest.raises(ServerError, match="no question has this name; there are throughput-blocking"):
        questions.selected(run, ["nonsense"], [], quick=False)


@pytest.mark.parametrize("handler", ["blocking", "asyncio"])
@pytest.mark.parametrize("name", ["SO_REUSEPORT", "shared listener", "pyfanout"])
def test_each_subject_answers_and_leaves_nothing(name: str, handler: str) -> None:
    loadgen.build()
    with Server(BY_NAME[f"{name} {handler}"], workers=2) as server:
        pids = [server.pid, *server.workers()]
        assert len(pids) == 3
        said = loadgen.load(server.port, closed=4, count=100)
        assert said.errors == {}
        assert {int(pid) for pid in said["workers"]} <= set(server.workers())
    assert procfs.session(server.pid) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_server_that_does_not_start_shows_its_log() -> None:
    wrong = replace(BY_NAME[THEIRS], command="{python} -m bench.subjects shared --handler nonsense --port {port}")
    with pytest.raises(ServerError, match=r"shared listener blocking does not answer; its log:[\s\S]*invalid choice"):
        Server(wrong, workers=1).__enter__()


def test_one_that_ends_with_an_error_has_failed() -> None:
    program = "import atexit, os\nfrom bench.subjects import main\natexit.register(os._exit, 1)\nmain()\n"
    command = BY_NAME[THEIRS].command.replace("-m bench.subjects", "{folder}/wrong.py")
    wrong = replace(BY_NAME[THEIRS], command=command, files=(("wrong.py", program),))
    with pytest.raises(ServerError, match="ended with 1 after TERM"), Server(wrong, workers=1):
        pass


def test_cpu_time_is_counted_in_ns() -> None:
    before, switches = procfs.cpu_ns(os.getpid()), procfs.switches(os.getpid())
    begin_ns = time.process_time_ns()
    while time.process_time_ns() - begin_ns < 20_000_000:
        Counter(range(100))
    assert 18_000_000 < procfs.cpu_ns(os.getpid()) - before < 200_000_000
    time.sleep(0.01)
    assert procfs.switches(os.getpid()) - switches >= 1


def answered(folder: Path, verb: str, only: list[str], who: list[str], **scale: Any) -> list[Sample]:
    """All that `python -m bench VERB` measures, in short."""
    run = RUNS[verb]
    some = questions.selected(run, only, who, quick=True)
    found = runner.run(some, replace(run.quick, **scale), folder / "samples.jsonl", {})
    assert runner.read(folder / "samples.jsonl")[1] == found
    return found


def test_a_server_beside_its_own_way(tmp_path: Path) -> None:
    found = answered(tmp_path, "embed", [], ["tornado", "pyfanout tornado"], each_s=0.5)
    speeds, kept, held = (standings.lines(question, found) for question in RUNS["embed"].questions)
    for lines in (speeds, kept, held):
        assert {line.subject for line in lines} == {"tornado", "pyfanout tornado"}
    assert all(min(line.values) > 0 for line in speeds + kept)
    context = Context(RUNS["embed"].quick, *choose_cores())
    few = losses.one_by_one(context, BY_NAME["pyfanout tornado"], 0, count=20)
    assert few["max_to_mean"] == 1, "20 connections in exact turn"


def test_a_life_in_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(life, "RATE", 100)
    found = answered(tmp_path, "life", ["kill-busy", "broken-exits", "scaling"], [], kills=2, cycles=1)
    by_name = {each.experiment: each.values for each in found}
    assert by_name["kill-busy"]["kills"] == 2
    assert "2 kills; the log names " in by_name["kill-busy"]["detail"]
    for name in ("broken-exits", "scaling"):
        assert (by_name[name]["number"], by_name[name]["missed"]) == (0, ""), by_name[name]["detail"]
        assert by_name[name]["load"][0]["answered"] > 100


def test_a_reload_is_asked_until_it_is_done() -> None:
    loadgen.build()
    context = Context(replace(RUNS["life"].quick, reloads=2), None, None)
    values = losses.reload(context, BY_NAME["pyfanout run, asyncio"], 0, rate=50, requests=3)
    assert values["lost"] == 0
    assert 8 < len(values["load"][0]["workers"]) <= 12


@pytest.mark.parametrize(("given", "avoided"), [("30000 60999", range(30_000, 61_000)), ("1024 65535", range(1024))])
def test_a_free_port_is_none_that_the_kernel_gives_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, avoided: range
) -> None:
    """Who could have it before the server binds it. Where there are no others it is one of those."""
    monkeypatch.setattr("bench.server.PORT_RANGE", tmp_path / "range")
    (tmp_path / "range").write_text(f"{given}\n")
    assert not set(avoided) & {free_port() for _ in range(8)}


def test_subjects_are_installed_as_users_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the tree, with its bytecode, which is read: where modules are compiled in the process, asyncio is 11 %
    faster."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    command = [installed.python(), "-v", "-c", "import pyfanout, gunicorn, bench.workloads"]
    environment = installed.environment()
    said = subprocess.run(
        command, cwd=installed.SITE, env=environment, capture_output=True, text=True, check=True
    ).stderr
    for path in ("pyfanout/__init__.py", "bench/workloads.py"):
        assert f"code object from '{importlib.util.cache_from_source(str(installed.SITE / path))}'" in said
    with Server(BY_NAME["pyfanout asyncio"], workers=1) as server:
        (worker,) = server.workers()
        maps = Path(f"/proc/{worker}/maps").read_text()
    assert re.findall(r"\S*/pyfanout/_core\S*", maps)[0].startswith(str(installed.SITE))


def test_who_waits_for_a_core_does_not_sleep() -> None:
    """A server whose worker has not yet got the time to start looks as if it rested."""
    wait = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        assert eventually(lambda: procfs.sleeps(wait.pid))
        assert not any(procfs.sleeps(spin.pid) for _ in range(20))
    finally:
        spin.kill()
        spin.wait()
        wait.communicate()


def eventually(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 20
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()
