"""The report of `python -m bench peers`: who is compared with whom, what is said of it, and a run of a part of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import __main__ as main
from bench import clients, field, procfs, runner, speed, standings, table
from bench.field import BY_NAME as SUBJECTS
from bench.field import FIELD
from bench.installed import ROOT
from bench.model import Context, Question, Sample, Values
from bench.questions import PEERS, RUNS, selected
from bench.runner import choose_cores
from bench.server import Server, ServerError

BY_NAME = {question.name: question for question in PEERS}


def answers(question: str, numbers: dict[str, list[float]]) -> list[Sample]:
    mine = [each for each in PEERS if each.experiment == question]
    keys = {key for each in mine for key in (each.key, *dict(each.points).values())}
    return [
        Sample(question, name, round_, {**dict.fromkeys(keys, value), "errors": {}})
        for name, values in numbers.items()
        for round_, value in enumerate(values)
    ]


def markdown(found: list[Sample]) -> str:
    return table.report(ABOUT, PEERS, found)


def verdicts(question: str, numbers: dict[str, list[float]]) -> dict[str, str]:
    return {line.subject: line.verdict for line in standings.lines(BY_NAME[question], answers(question, numbers))}


OURS, THEIRS = "pyfanout blocking", "SO_REUSEPORT blocking"
STREAMS = "pyfanout asyncio"


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([100.0, 110.0, 90.0], [50.0, 80.0, 89.0], "pyfanout is better"),
        ([50.0, 80.0, 89.0], [100.0, 110.0, 90.0], "**better than pyfanout**"),
        ([100.0, 110.0, 90.0], [50.0, 100.0, 80.0], "overlap"),  # 1.1 and more in every round, but 90 is less than 100
        ([100.0, 110.0, 90.0], [90.0, 120.0, 80.0], "overlap"),
        ([100.0, 110.0], [50.0, 60.0], "too few rounds to rank"),
    ],
)
def test_a_verdict_needs_spreads_that_do_not_overlap(ours: list[float], theirs: list[float], verdict: str) -> None:
    assert verdicts("throughput", {OURS: ours, THEIRS: theirs}) == {OURS: "", THEIRS: verdict}


def test_less_is_better_where_it_is_and_none_is_best() -> None:
    numbers = {OURS: [0.0] * 3, STREAMS: [0.0] * 3, THEIRS: [64.0] * 3, "nginx": [0.0] * 3}
    found = {line.subject: line.verdict for line in standings.lines(BY_NAME["stop"], answers("stop", numbers))}
    assert list(found)[-1] == THEIRS
    assert found == {OURS: "", STREAMS: "", THEIRS: "pyfanout is better", "nginx": "overlap"}
    assert "∞" in markdown(answers("stop", {OURS: [0.0] * 3, THEIRS: [64.0] * 3}))


def test_speed_is_compared_among_those_who_speak_the_same() -> None:
    numbers = {OURS: [9.0] * 3, "pyfanout uvicorn": [5.0] * 3, "uvicorn": [4.0] * 3, "nginx": [8.0] * 3}
    found = {line.subject: line for line in standings.lines(BY_NAME["throughput"], answers("throughput", numbers))}
    assert found["uvicorn"].ratios == [1.25] * 3
    assert found["nginx"].ratios == []


def test_who_is_compared_with_whom_was_decided_before_and_is_said() -> None:
    """The best of ours, chosen when all is measured, would owe much to luck."""
    numbers = {OURS: [9.0] * 3, "pyfanout threads": [10.0] * 3, THEIRS: [8.0] * 3, "gunicorn gthread": [1.0] * 3}
    found = {line.subject: line for line in standings.lines(BY_NAME["throughput"], answers("throughput", numbers))}
    assert (found[THEIRS].beside, found[THEIRS].ratios) == (OURS, [9 / 8] * 3)
    assert (found["gunicorn gthread"].beside, found["gunicorn gthread"].ratios) == ("", [])
    assert f"{OURS}: 1.12" in markdown(answers("throughput", numbers))


def test_every_rival_has_one_of_ours_with_as_many_threads_beside_it_which_is_asked_all_that_it_is() -> None:
    for each in FIELD:
        assert each.ours == (not each.beside), each.name
        if each.beside:
            beside = SUBJECTS[each.beside]
            assert (beside.ours, beside.threads) == (True, each.threads), each.name
            assert each.kind in (beside.kind, "another language"), each.name
            assert set(beside.asked) <= set(each.asked), each.name


def test_one_sample_answers_several_questions() -> None:
    """Each with its own runs of the load generator, and the errors of these."""
    load = [{"errors": {"reset": count}, "latency_ns": {}} for count in range(3)]
    values = {**{f"p50_{rate}_us": 1.0 for rate in speed.RATES}, "errors": {"reset": 3}}
    for at, rate in enumerate(speed.RATES):
        own = standings.own(BY_NAME[f"latency-{rate}"], {**values, "load": load})
        assert own["load"] == [load[at]]
        assert own["errors"] == ({"reset": at} if at else {})


def test_latency_is_also_said_as_what_is_added() -> None:
    found = answers("latency-low", {OURS: [110.0, 120.0, 95.0], THEIRS: [100.0] * 3})
    lines = {line.subject: line.added for line in standings.lines(BY_NAME["latency-low"], found)}
    assert lines == {OURS: 10.0, THEIRS: 0.0}
    assert f"added to {THEIRS}" in markdown(found)
    assert "| +10 |" in markdown(found)


def test_who_is_not_asked_is_said_and_why() -> None:
    for question in PEERS:
        rest = [each for each in FIELD if not each.asked and each.name not in question.subjects]
        assert question.unasked or not rest, question.name
    text = markdown(answers("reload", {OURS: [0.0] * 3}))
    assert re.search(r"Not asked: SO_REUSEPORT blocking;.* hypercorn;.*: has no signal or command for it\.", text)
    assert "Not asked: pyfanout blocking, source-hash; pyfanout threads;" in text


def test_samples_that_other_code_has_measured_are_refused(tmp_path: Path) -> None:
    """And of a commit that is not here, or what was not committed, it is said."""
    found = answers("stop", {OURS: [0.0]})
    for commit, said in (
        ("0" * 40, "which is not known here"),
        ("unknown", "not known"),
        ("ab-dirty", "not committed"),
    ):
        keep(tmp_path, ABOUT | {"commit": commit}, found)
        bench("page", str(tmp_path))
        assert said in (tmp_path / "report.html").read_text().partition("<h2>")[0]
    command = ["git", "rev-list", "--max-parents=0", "HEAD"]
    first = subprocess.check_output(command, cwd=ROOT, text=True).split()[0]
    with pytest.raises(ServerError, match=r"measured by .*, which measures otherwise"):
        main.doubt(first, refuse=True)
    keep(tmp_path, ABOUT | {"commit": first}, found)
    bench("page", str(tmp_path), "--anyway")
    assert "pyfanout, has changed since" in (tmp_path / "report.html").read_text().partition("<h2>")[0]


def test_who_was_limited_by_the_load_generator_is_not_ranked() -> None:
    found = answers("throughput", {OURS: [9.0] * 3, THEIRS: [8.0] * 3})
    for each in found:
        each.values["load_busy"] = 0.95 if each.subject == OURS else 0.5
    (line,) = [line for line in standings.lines(BY_NAME["throughput"], found) if line.ratios]
    assert line.verdict == "not ranked"
    assert not line.better_than_ours


@pytest.mark.parametrize(("ours", "verdict"), [(1.01, "equal within 2 %"), (1.03, "pyfanout is better")])
def test_a_hair_is_no_victory(ours: float, verdict: str) -> None:
    assert verdicts("throughput", {OURS: [ours] * 3, THEIRS: [1.0] * 3})[THEIRS] == verdict
    other_way = verdicts("throughput", {OURS: [1.0] * 3, THEIRS: [ours] * 3})[THEIRS]
    assert other_way == ("**better than pyfanout**" if verdict == "pyfanout is better" else verdict)


class _Half(socketserver.BaseRequestHandler):
    """Answers; of two connections it closes one."""

    def handle(self) -> None:
        self.request.recv(999)
        self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n1\n")
        self.server.count += 1  # type: ignore[attr-defined]
        if self.server.count % 2:  # type: ignore[attr-defined]
            self.request.recv(999)


def test_one_that_is_held_and_is_closed_meanwhile_is_an_error() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Half) as server:
        server.count = 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            with clients.held_by_others(port, 1, 1):
                pass
            with pytest.raises(OSError, match="closed meanwhile"), clients.held_by_others(port, 2, 1):
                time.sleep(0.2)  # its end is on its way
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("handler", ["blocking", "asyncio"])
@pytest.mark.parametrize(
    "name", ["SO_REUSEPORT ", "shared listener ", "dispatcher in Python, ", "multiprocessing.reduction, "]
)
def test_what_a_rival_has_begun_when_it_is_told_to_stop_it_finishes(name: str, handler: str) -> None:
    """No handicaps."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(SUBJECTS[name + handler], workers=2))
        conn = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        conn.sendall(b"GET /wait/500000 HTTP/1.0\r\n\r\n")
        time.sleep(0.2)  # it has begun: nothing tells
        server.terminate()
        answer = b""
        while more := conn.recv(999):
            answer += more
    assert answer.startswith(b"HTTP/1.0 200")


def test_other_languages_are_compared_where_speed_is_not_what_is_asked() -> None:
    numbers = {OURS: [0.0] * 3, STREAMS: [2.0] * 3, THEIRS: [4.0] * 3, "nginx": [1.0] * 3}
    found = {line.subject: line for line in standings.lines(BY_NAME["kill"], answers("kill", numbers))}
    assert found[THEIRS].ratios == [float("inf")] * 3
    assert found["nginx"].verdict == "**better than pyfanout**"


def test_a_curve_has_a_number_for_each_point() -> None:
    question = BY_NAME["tail-bimodal"]
    found = answers(question.experiment, {OURS: [0.0]})
    found[0].values.update({key: float(point.split()[1]) for point, key in question.points})
    (line,) = standings.lines(question, found)
    assert line.points == [50.0, 70.0, 85.0, 95.0]
    assert "load 95 %" in markdown(found)


def test_a_load_generator_that_was_late_is_named() -> None:
    def sample(late_ns: int) -> list[Sample]:
        load = [{"late_start_ns": {"p50": late_ns}, "latency_ns": {"fast": {"p50": 1000}}}]
        found = answers("latency-low", {OURS: [1.0]})
        found[0].values["load"] = load * len(speed.RATES)
        return found

    assert "the load generator was late, 20% of the p50" in markdown(sample(200))
    assert "late" not in markdown(sample(50)).partition("## ")[2]


ABOUT: dict[str, Any] = {
    "date": "2026-11-23",
    "commit": "unknown",
    "versions": {"x": "1"},
    "absent": ["PM2 cluster: not run, x is not here"],
}


def test_what_we_lose_is_said_first_and_who_was_not_run() -> None:
    text = markdown(answers("throughput", {OURS: [1.0] * 3, THEIRS: [2.0] * 3}))
    before, _, after = text.partition("## ")
    assert "throughput: SO_REUSEPORT blocking, 2 times as good as pyfanout blocking" in before
    assert "once in 10 where two are equal" in before
    assert "PM2 cluster: not run" in before
    assert "**better than pyfanout**" in after


def test_one_that_failed_is_named() -> None:
    failed = Sample("stop", THEIRS, 1, {"failed": "ServerError: not now\nits log", "errors": {}})
    text = markdown([*answers("stop", {OURS: [0.0] * 3}), failed])
    assert "- SO_REUSEPORT blocking, round 2: ServerError: not now" in text


def test_every_question_has_one_of_ours_to_compare_and_every_peer_a_kind() -> None:
    for run in RUNS.values():
        for question in run.questions:
            assert any(SUBJECTS[name].ours for name in question.subjects), question.name
    kinds = {"handler", "streams", "WSGI", "ASGI", "aiohttp", "tornado", "another language"}
    assert {subject.kind for subject in FIELD} == kinds
    asked = {name for run in RUNS.values() for question in run.questions for name in question.subjects}
    assert asked == set(SUBJECTS), "nobody is in the field for nothing"


def test_a_missing_one_is_named_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "nginx", replace(SUBJECTS["nginx"], needs="no-such-program"))
    absent = main.header([], [BY_NAME["throughput"]])["absent"]
    assert "nginx: not run, no-such-program is not installed" in absent
    assert "nginx" not in [each.name for each in BY_NAME["throughput"].here]


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """What is there is not measured again, the half line of when it was killed is dropped, another run is refused."""
    keep = tmp_path / "samples.jsonl"
    asked = []

    def question(name: str) -> Question:
        def measure(_context: Context, subject: field.Subject, _seed: int) -> Values:
            asked.append((name, subject.name))
            return {"number": len(asked), "errors": {}}

        return Question(name, name, "", "number", measure, (OURS, THEIRS))

    scale = replace(RUNS["peers"].quick, rounds=2)
    both = [question("a"), question("b")]
    first = runner.run(both[:1], scale, keep, {"commit": "x"})
    with keep.open("a") as out:
        out.write('{"experiment": "b", "subj')
    again = runner.run(both, scale, keep, {"commit": "x", "date": "later"})
    assert asked == [(name, subject) for name in "ab" for subject in (OURS, THEIRS, THEIRS, OURS)]
    assert again[:4] == first
    assert runner.read(keep) == ({"commit": "x", "scale": asdict(scale)}, again)
    with pytest.raises(ServerError, match="is of another commit: x, now y"):
        runner.run(both, scale, keep, {"commit": "y"})


def test_a_stall_that_is_not_seen_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a stall of 200 ms was seen" in runner.check_load()
    monkeypatch.setattr(runner, "signal", SimpleNamespace(SIGSTOP=0, SIGCONT=0))  # nobody is stopped
    with pytest.raises(ServerError, match="not to be trusted"):
        runner.check_load()


def test_a_namespace_has_its_own_sysctls() -> None:
    name, path = "net.ipv4.tcp_migrate_req", Path("/proc/sys/net/ipv4/tcp_migrate_req")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before, ours = path.read_text(), os.readlink("/proc/self/ns/net")
    with runner.namespace({name: "1"}):
        assert path.read_text() == "1\n"
        assert os.readlink("/proc/self/ns/net") != ours
    assert path.read_text() == before
    assert os.readlink("/proc/self/ns/net") == ours


@pytest.mark.parametrize("name", ["dispatcher in Python", "multiprocessing.reduction"])
@pytest.mark.parametrize("handler", ["blocking", "asyncio"])
def test_what_people_write_by_hand_serves_in_turn(name: str, handler: str) -> None:
    with Server(SUBJECTS[f"{name}, {handler}"], workers=2) as one, clients.held(one.port, 4) as pids:
        assert pids[:2] == pids[2:]
        assert len(set(pids)) == 2


def test_a_restart_serves_again() -> None:
    with Server(SUBJECTS[OURS], workers=1) as one:
        pid = one.pid
        assert one.restarted_s(120) > 0
        assert one.pid != pid
        assert clients.first_answer_s(one.port, 5) < 5


def test_one_that_cannot_start_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(SUBJECTS["uvicorn"], command="{python} -c exit('not_today')")
    monkeypatch.setitem(SUBJECTS, "uvicorn", broken)
    with pytest.raises(ServerError, match=r"(?s)uvicorn does not answer.*not_today"), Server(broken, workers=1):
        pass
    run = RUNS["peers"]
    (one,) = selected(run, ["recovery"], ["uvicorn"], quick=True)
    (step,) = [step for step in runner.steps([one], run.quick) if step.subject.name == "uvicorn"]
    sample = runner.measure(Context(run.quick, *choose_cores()), step)
    assert sample.values["failed"].startswith("ServerError: uvicorn does not answer")


INSTALLED = [
    "pyfanout gunicorn gthread",
    "pyfanout waitress",
    "pyfanout uvicorn",
    "pyfanout hypercorn",
    "gunicorn sync",
    "uvicorn",
    "hypercorn",
]


@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_answers_from_all_its_workers_and_leaves_nothing(name: str) -> None:
    """What its workers used is known, though they are killed beside their parent: nobody shall think it was others."""
    before_s = runner.used_s()
    with Server(SUBJECTS[name], workers=2) as server:
        pid, used_ns = server.pid, procfs.session_cpu_ns(server.pid)
    assert procfs.session(pid) == []
    assert runner.used_s() - before_s >= used_ns / 1e9 - 2 / os.sysconf("SC_CLK_TCK"), "times() counts in ticks"


def bench(*words: str) -> None:
    command = [sys.executable, "-m", "bench", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)


def keep(folder: Path, about: Values, found: list[Sample]) -> None:
    (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [about, *map(asdict, found)]))


def test_the_picture_names_the_worst_for_us_and_shows_who_lost_none(tmp_path: Path) -> None:
    keep(tmp_path, ABOUT, answers("kill", {STREAMS: [2] * 3, "nginx": [0] * 3, "uvicorn": [1] * 3, THEIRS: [1e3] * 3}))
    bench("page", str(tmp_path))
    overview = (tmp_path / "overview.svg").read_text()
    assert [name for name in SUBJECTS if f">{name}<" in overview] == ["nginx"]
    assert overview in (tmp_path / "report.html").read_text()


def test_a_short_run_makes_a_report_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    only = ["--only", "latency-low", "--only", "stop", "--subject", OURS, "--subject", THEIRS]
    bench("peers", "--quick", *only, "--to", str(tmp_path), "--note", "a short one")
    about, found = runner.read(tmp_path / "samples.jsonl")
    assert {(each.experiment, each.subject) for each in found} == {
        *((question, name) for question in ("latency-low", "stop") for name in (OURS, THEIRS)),
        ("stop", f"{THEIRS}, tcp_migrate_req"),
    }
    assert about["commands"][OURS] == "python -m bench.subjects pyfanout --handler blocking"
    assert about["note"] == "a short one"
    assert [each.values["lost"] for each in found if (each.experiment, each.subject) == ("stop", OURS)] == [0]
    assert about["command"].startswith("python -m bench peers --quick")
    assert {each.name for each in tmp_path.iterdir()} == {"samples.jsonl", "report.md"}
    bench("page", str(tmp_path))
    first, text = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 1
    assert text.count("<h2>") == first.count("\n## ") == 5
    assert text.count("<table>") == 4
    assert not re.search(r"<(?:script|link|img|iframe)\b|@import|url\((?!#)", text)


def test_one_that_does_not_stop_has_failed() -> None:
    with Server(SUBJECTS[OURS], workers=1) as one:
        with socket.create_connection(("127.0.0.1", one.port), 10) as conn:
            conn.sendall(b"GET /wait/1000000 HTTP/1.0\r\n\r\n")
            time.sleep(0.2)  # it has begun: nothing tells
            with pytest.raises(ServerError, match=r"had not stopped after 0\.2 s"):
                one.stopped_s(0.2)
            assert conn.recv(999).startswith(b"HTTP/1.0 200")
        assert one.stopped_s(10) < 10


def test_a_peer_is_all_on_its_core_also_what_it_starts_later() -> None:
    cpu, _ = choose_cores()
    with Server(SUBJECTS["gunicorn sync"], workers=2, cpu=cpu) as one:
        one.reload()
        assert all(os.sched_getaffinity(pid) == {cpu} for pid in procfs.session(one.pid))
