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

from bench import clients, field, netns, page, procfs, questions, run, selfcheck, standings
from bench.installed import ROOT
from bench.peers import PEERS, Peer
from bench.questions import QUESTIONS
from bench.run import Context, Experiment, Sample, choose_cores
from bench.server import PeerServer, Server, ServerError

BY_NAME = {question.name: question for question in QUESTIONS}


def samples(question: str, numbers: dict[str, list[float]]) -> list[Sample]:
    mine = [each for each in QUESTIONS if each.source == question]
    keys = {
        key
        for each in mine
        for key in (each.key, *(column.key for column in each.columns), *dict(each.points).values())
    }
    return [
        Sample(question, name, round_, {**dict.fromkeys(keys, value), "errors": {}})
        for name, values in numbers.items()
        for round_, value in enumerate(values)
    ]


def verdicts(question: str, numbers: dict[str, list[float]]) -> dict[str, str]:
    return {line.subject: line.verdict for line in standings.lines(BY_NAME[question], samples(question, numbers))}


OURS, THEIRS = "pyfanout blocking", "SO_REUSEPORT blocking"
STREAMS = "pyfanout asyncio"


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([100.0, 110.0, 90.0], [50.0, 80.0, 89.0], "we are better"),
        ([50.0, 80.0, 89.0], [100.0, 110.0, 90.0], "**better than we are**"),
        ([100.0, 110.0, 90.0], [50.0, 100.0, 80.0], "overlap"),  # 1.1 and more in every round, but 90 is less than 100
        ([100.0, 110.0, 90.0], [90.0, 120.0, 80.0], "overlap"),
        ([100.0, 110.0], [50.0, 60.0], "too few rounds to rank"),
    ],
)
def test_a_verdict_needs_spreads_that_do_not_overlap(ours: list[float], theirs: list[float], verdict: str) -> None:
    assert verdicts("throughput", {OURS: ours, THEIRS: theirs}) == {OURS: "", THEIRS: verdict}


def test_less_is_better_where_it_is_and_none_is_best() -> None:
    numbers = {OURS: [0.0] * 3, STREAMS: [0.0] * 3, THEIRS: [64.0] * 3, "nginx": [0.0] * 3}
    found = {line.subject: line.verdict for line in standings.lines(BY_NAME["stop"], samples("stop", numbers))}
    assert list(found)[-1] == THEIRS
    assert found == {OURS: "", STREAMS: "", THEIRS: "we are better", "nginx": "overlap"}
    assert "∞" in page.markdown(ABOUT, samples("stop", {OURS: [0.0] * 3, THEIRS: [64.0] * 3}))


def test_speed_is_compared_among_those_who_speak_the_same() -> None:
    numbers = {OURS: [9.0] * 3, "pyfanout uvicorn": [5.0] * 3, "uvicorn": [4.0] * 3, "nginx": [8.0] * 3}
    found = {line.subject: line for line in standings.lines(BY_NAME["throughput"], samples("throughput", numbers))}
    assert found["uvicorn"].ratios == [1.25] * 3
    assert found["nginx"].ratios == []


def test_who_is_compared_with_whom_was_decided_before_and_is_said() -> None:
    """The best of ours, chosen when all is measured, would owe much to luck."""
    numbers = {OURS: [9.0] * 3, "pyfanout threads": [10.0] * 3, THEIRS: [8.0] * 3, "gunicorn gthread": [1.0] * 3}
    found = {line.subject: line for line in standings.lines(BY_NAME["throughput"], samples("throughput", numbers))}
    assert (found[THEIRS].beside, found[THEIRS].ratios) == (OURS, [9 / 8] * 3)
    assert (found["gunicorn gthread"].beside, found["gunicorn gthread"].ratios) == ("", [])
    assert f"{OURS}: 1.12" in page.markdown(ABOUT, samples("throughput", numbers))


def test_every_rival_has_one_of_ours_with_as_many_threads_beside_it_which_is_asked_all_that_it_is() -> None:
    names = {each.name: each for each in field.SUBJECTS}
    for each in field.SUBJECTS:
        assert each.ours == (not each.beside), each.name
        if each.beside:
            beside = names[each.beside]
            assert (beside.ours, beside.threads) == (True, each.threads), each.name
            assert each.kind in (beside.kind, "another language"), each.name
            assert not beside.asked


def test_one_sample_answers_several_questions() -> None:
    """Each with its own runs of the load generator, and the errors of these."""
    load = [{"errors": {"reset": count}, "latency_ns": {}} for count in range(3)]
    values = {**{f"p50_{rate}_us": 1.0 for rate in questions.RATES}, "errors": {"reset": 3}}
    for at, rate in enumerate(questions.RATES):
        own = standings.own(BY_NAME[f"latency-{rate}"], {**values, "load": load})
        assert own["load"] == [load[at]]
        assert own["errors"] == ({"reset": at} if at else {})


def test_latency_is_also_said_as_what_is_added() -> None:
    found = samples("latency-low", {OURS: [110.0, 120.0, 95.0], THEIRS: [100.0] * 3})
    lines = {line.subject: line.columns for line in standings.lines(BY_NAME["latency-low"], found)}
    assert lines == {OURS: (10.0,), THEIRS: (0.0,)}
    assert f"added to {THEIRS}, us" in page.markdown(ABOUT, found)
    assert "| +10 |" in page.markdown(ABOUT, found)


def test_who_is_not_asked_is_said_and_why() -> None:
    for question in QUESTIONS:
        assert question.unasked or all(map(question.of, field.SUBJECTS)), question.name
    text = page.markdown(ABOUT, samples("reload", {OURS: [0.0] * 3}))
    assert re.search(r"Not asked: SO_REUSEPORT blocking;.* hypercorn;.*: has no signal or command for it\.", text)
    assert "Not asked: pyfanout blocking, source-hash; pyfanout threads;" in text


def test_samples_that_other_code_has_measured_are_refused(tmp_path: Path) -> None:
    """And of a commit that is not here, or what was not committed, it is said."""
    keep = tmp_path / "samples.jsonl"
    first = subprocess.run(["git", "rev-list", "--max-parents=0", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    for commit, said in (
        ("0" * 40, "which is not known here"),
        ("unknown", "not known"),
        ("ab-dirty", "not committed"),
    ):
        (sample,) = samples("stop", {OURS: [0.0]})
        keep.write_text("".join(json.dumps(each) + "\n" for each in ({**ABOUT, "commit": commit}, asdict(sample))))
        report("--again", str(keep))
        assert said in (tmp_path / "report.md").read_text().partition("## ")[0]
    with pytest.raises(ServerError, match=r"measured by .*, which measures otherwise"):
        standings.doubt(first.stdout.decode().split()[0], refuse=True)


def test_who_was_limited_by_the_load_generator_is_not_ranked() -> None:
    found = samples("throughput", {OURS: [9.0] * 3, THEIRS: [8.0] * 3})
    for each in found:
        each.values["load_busy"] = 0.95 if each.subject == OURS else 0.5
    (line,) = [line for line in standings.lines(BY_NAME["throughput"], found) if line.ratios]
    assert line.verdict == "not ranked"
    assert not line.better_than_ours


@pytest.mark.parametrize(("ours", "verdict"), [(1.01, "equal within 2 %"), (1.03, "we are better")])
def test_a_hair_is_no_victory(ours: float, verdict: str) -> None:
    assert verdicts("throughput", {OURS: [ours] * 3, THEIRS: [1.0] * 3})[THEIRS] == verdict
    other_way = verdicts("throughput", {OURS: [1.0] * 3, THEIRS: [ours] * 3})[THEIRS]
    assert other_way == ("**better than we are**" if verdict == "we are better" else verdict)


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
@pytest.mark.parametrize("name", ["reuseport", "shared", "by-hand", "reduction"])
def test_what_a_rival_has_begun_when_it_is_told_to_stop_it_finishes(name: str, handler: str) -> None:
    """No handicaps."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(name, handler=handler, workers=2))
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
    found = {line.subject: line for line in standings.lines(BY_NAME["kill"], samples("kill", numbers))}
    assert found[THEIRS].ratios == [float("inf")] * 3
    assert found["nginx"].verdict == "**better than we are**"


def test_a_curve_has_a_number_for_each_point() -> None:
    question = BY_NAME["tail-bimodal"]
    found = samples(question.source, {OURS: [0.0]})
    found[0].values.update({key: float(point.split()[0]) for point, key in question.points})
    (line,) = standings.lines(question, found)
    assert line.curve == [50.0, 70.0, 85.0, 95.0]
    assert "load 95 %" in page.markdown(ABOUT, found)


def test_a_load_generator_that_was_late_is_named() -> None:
    def sample(late_ns: int) -> list[Sample]:
        load = [{"late_start_ns": {"p50": late_ns}, "latency_ns": {"fast": {"p50": 1000}}}]
        found = samples("latency-low", {OURS: [1.0]})
        found[0].values["load"] = load * len(questions.RATES)
        return found

    assert "the load generator was late, 20% of the p50" in page.markdown(ABOUT, sample(200))
    assert "late" not in page.markdown(ABOUT, sample(50)).partition("## ")[2]


ABOUT: dict[str, Any] = {
    "date": "2026-11-23",
    "commit": "unknown",
    "versions": {"x": "1"},
    "absent": ["PM2 cluster: not run, x is not here"],
}


def test_what_we_lose_is_said_first_and_who_was_not_run() -> None:
    text = page.markdown(ABOUT, samples("throughput", {OURS: [1.0] * 3, THEIRS: [2.0] * 3}))
    before, _, after = text.partition("## ")
    assert "throughput: SO_REUSEPORT blocking, 2 times as good as pyfanout blocking" in before
    assert "once in 10 where two are equal" in before
    assert "PM2 cluster: not run" in before
    assert "**better than we are**" in after


def test_one_that_failed_is_named() -> None:
    failed = Sample("stop", THEIRS, 1, {"failed": "ServerError: not now\nits log", "errors": {}})
    text = page.markdown(ABOUT, [*samples("stop", {OURS: [0.0] * 3}), failed])
    assert "- SO_REUSEPORT blocking, round 2: ServerError: not now" in text


def test_every_question_has_one_of_ours_to_compare_and_every_peer_a_kind() -> None:
    for question in QUESTIONS:
        assert any(question.asks(subject) and subject.ours for subject in field.SUBJECTS), question.name
    assert {subject.kind for subject in field.SUBJECTS} == {"handler", "streams", "WSGI", "ASGI", "another language"}
    assert {subject.server for subject in field.SUBJECTS} >= set(PEERS)


def test_a_missing_one_is_named_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "nginx", Peer("no-such-program", "no-such-program"))
    assert "nginx: not run, no-such-program is not installed" in standings.absent()
    assert "nginx" not in BY_NAME["throughput"].experiment().subjects


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """What is there is not measured again, the half line of when it was killed is dropped, another run is refused."""
    keep = tmp_path / "samples.jsonl"
    asked = []

    def experiment(name: str) -> Experiment:
        def measure(_context: Any, subjects: tuple[str, ...], round_: int) -> dict[str, Any]:
            asked.append((name, round_))
            return {subject: {"number": round_, "errors": {}} for subject in subjects}

        return Experiment(name, ("one", "other"), measure, lambda _: 1)

    scale = replace(questions.QUICK, rounds=2)
    both = [experiment("a"), experiment("b")]
    first = run.run(both[:1], scale, keep, {"commit": "x"})
    with keep.open("a") as out:
        out.write('{"experiment": "b", "subj')
    again = run.run(both, scale, keep, {"commit": "x", "date": "later"})
    assert asked == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert again[:4] == first
    assert run.read(keep) == ({"commit": "x", "scale": asdict(scale)}, again)
    with pytest.raises(ServerError, match="is of another commit: x, now y"):
        run.run(both, scale, keep, {"commit": "y"})


def test_a_stall_that_is_not_seen_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = choose_cores()[1]
    assert "a stall of 200 ms was seen" in selfcheck.check(layout)
    monkeypatch.setattr(selfcheck, "signal", SimpleNamespace(SIGSTOP=0, SIGCONT=0))  # nobody is stopped
    with pytest.raises(ServerError, match="not to be trusted"):
        selfcheck.check(layout)


def test_a_namespace_has_its_own_sysctls() -> None:
    name, path = "net.ipv4.tcp_migrate_req", Path("/proc/sys/net/ipv4/tcp_migrate_req")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    before, ours = path.read_text(), os.readlink("/proc/self/ns/net")
    with netns.namespace({name: "1"}):
        assert path.read_text() == "1\n"
        assert os.readlink("/proc/self/ns/net") != ours
    assert path.read_text() == before
    assert os.readlink("/proc/self/ns/net") == ours


@pytest.mark.parametrize("server", ["by-hand", "reduction"])
@pytest.mark.parametrize("handler", ["blocking", "asyncio"])
def test_what_people_write_by_hand_serves_in_turn(server: str, handler: str) -> None:
    with Server(server, handler=handler, workers=2) as one, clients.held(one.port, 4) as pids:
        assert pids[:2] == pids[2:]
        assert len(set(pids)) == 2


def test_a_restart_serves_again() -> None:
    with Server("pyfanout", handler="blocking", workers=1) as one:
        pid = one.pid
        one.restart()
        assert one.pid != pid
        assert clients.first_answer_s(one.port, 5) < 5


def test_one_that_cannot_start_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "uvicorn", Peer("{python} -c exit('not_today')", "python:uvicorn"))
    with (
        pytest.raises(ServerError, match=r"(?s)0 workers of uvicorn answer.*not_today"),
        PeerServer("uvicorn", workers=1),
    ):
        pass
    (one,) = questions.experiments(["recovery"], ["uvicorn"], quick=True)
    found = one.measure(Context(questions.QUICK, *choose_cores()), one.subjects, 0)
    assert found["uvicorn"]["failed"].startswith("ServerError: 0 workers of uvicorn answer")


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
    before_s = run.used_s()
    with PeerServer(name, workers=2) as server:
        pid, used_ns = server.pid, procfs.session_cpu_ns(server.pid)
    assert procfs.session(pid) == []
    assert run.used_s() - before_s >= used_ns / 1e9 - 2 / os.sysconf("SC_CLK_TCK"), "times() counts in ticks"


def report(*words: str) -> None:
    command = [sys.executable, "-m", "bench", "peers", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)


def test_pictures_name_the_worst_for_us_show_who_lost_none_and_draw_no_percentile_of_luck(tmp_path: Path) -> None:
    found = samples("kill", {STREAMS: [2.0] * 3, "nginx": [0.0] * 3, "uvicorn": [1.0] * 3, THEIRS: [1e3] * 3})
    times = dict.fromkeys(("p50", "p90", "p99", "p999"), 1000)
    counts = {"low": 999, "middle": 999, "high": 1000}
    load = [{"latency_ns": {"fast": {"count": n, **times}}, "late_start_ns": {"p50": 0}} for n in counts.values()]
    values = {f"p50_{rate}_us": 1.0 for rate in counts}
    found.append(Sample("latency-low", OURS, 0, {**values, "errors": {}, "load": load}))
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, [ABOUT, *map(asdict, found)])) + "\n")
    report("--again", str(tmp_path / "samples.jsonl"))
    overview = (tmp_path / "overview.svg").read_text()
    assert [name for name in field.BY_NAME if f">{name}<" in overview] == ["nginx"]
    _, low, _, high, kill, _ = (
        part.split("<table>")[0] for part in (tmp_path / "report.html").read_text().split("<h2>")
    )
    assert re.findall(r">(p\d[\d.]*)<", low) == ["p50", "p90"]
    assert re.findall(r">(p\d[\d.]*)<", high) == ["p50", "p90", "p99"]
    assert {"0", "1", "10", "100", "1,000"} <= set(re.findall(r">([\d,]+)</text>", kill))


def test_a_short_run_makes_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    report(
        "--quick",
        "--only",
        "latency-low",
        "--only",
        "stop",
        "--who",
        OURS,
        "--who",
        THEIRS,
        "--to",
        str(tmp_path),
        "--note",
        "a short one",
    )
    about, found = run.read(tmp_path / "samples.jsonl")
    assert {(each.experiment, each.subject) for each in found} == {
        *((question, name) for question in ("latency-low", "stop") for name in (OURS, THEIRS)),
        ("stop", f"{THEIRS}, tcp_migrate_req"),
    }
    assert about["commands"][OURS].startswith("python -m bench.subjects pyfanout --handler blocking")
    assert about["note"] == "a short one"
    assert [each.values["lost"] for each in found if (each.experiment, each.subject) == ("stop", OURS)] == [0]
    assert about["command"].startswith("python -m bench peers --quick")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 8
    assert not re.search(r"<(?:script|link|img|iframe)\b|@import|url\((?!#)", text)
    first = (tmp_path / "report.md").read_text()
    (tmp_path / "report.md").unlink()
    report("--again", str(tmp_path / "samples.jsonl"))
    assert (tmp_path / "report.md").read_text() == first


def test_one_that_does_not_stop_has_failed() -> None:
    with Server("pyfanout", handler="blocking", workers=1) as one:
        with socket.create_connection(("127.0.0.1", one.port), 10) as conn:
            conn.sendall(b"GET /wait/1000000 HTTP/1.0\r\n\r\n")
            time.sleep(0.2)  # it has begun: nothing tells
            with pytest.raises(ServerError, match=r"had not stopped after 0\.2 s"):
                one.stopped_s(0.2)
            assert conn.recv(999).startswith(b"HTTP/1.0 200")
        assert one.stopped_s(10) < 10


def test_a_run_takes_as_long_as_is_said() -> None:
    for quick, scale, minutes in ((False, questions.FULL, 75), (True, questions.QUICK, 6)):
        plan = questions.experiments([], [], quick=quick)
        assert sum(one.expected_s(scale) * len(one.subjects) for one in plan) * scale.rounds < 60 * minutes


def test_a_peer_is_all_on_its_core_also_what_it_starts_later() -> None:
    cpu = choose_cores()[1].server
    with PeerServer("gunicorn sync", workers=2, cpu=cpu) as one:
        one.reload()
        assert all(os.sched_getaffinity(pid) == {cpu} for pid in procfs.session(one.pid))
