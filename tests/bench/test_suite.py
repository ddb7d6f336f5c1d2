"""The suite does what it says: order of the rounds, verdicts, servers that answer and leave nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from bench import __main__ as main
from bench import embed, installed, loadgen, procfs, report, run
from bench.report import Asked, Row
from bench.run import Sample
from bench.server import Server, ServerError, free_port


def samples(**values: list[float]) -> list[Sample]:
    return [
        Sample("race", subject, round_, {"speed": value, "errors": {}, "load_busy": 0.5})
        for subject, rounds in values.items()
        for round_, value in enumerate(rounds)
    ]


FASTER = Row("race", "race", "speed", Asked(at_least=1.05, no_round_under=0.95), "{:.2f}", "shared", report.ratio, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([11, 22, 33], [10, 20, 30], "reached; better"),
        ([11, 19, 33], [10, 20, 30], "reached; overlap"),
        ([11, 18, 33], [10, 20, 30], "**missed**; overlap"),  # one round at 0.90
        ([9, 18, 27], [10, 20, 30], "**missed**; worse"),
        ([10, 20, 30], [10, 20, 30], "**missed**; overlap"),
    ],
)
def test_verdict_is_by_ratios_within_rounds(ours: list[float], theirs: list[float], verdict: str) -> None:
    found = samples(pyfanout=ours, shared=theirs)
    assert report.verdict(FASTER, FASTER.values(found), found) == verdict


def test_less_is_better_where_it_is() -> None:
    row = Row("race", "race", "speed", Asked(at_most=1.03), "{:.2f}", "shared", report.ratio, 1.0, better=-1)
    found = samples(pyfanout=[9, 9, 9], shared=[10, 10, 10])
    assert report.verdict(row, row.values(found), found) == "reached; better"
    found = samples(pyfanout=[11, 11, 11], shared=[10, 10, 10])
    assert report.verdict(row, row.values(found), found) == "**missed**; worse"


def test_errors_stand_beside_the_verdict() -> None:
    found = samples(pyfanout=[11], shared=[10])
    found.append(Sample("race", "shared", 1, {"speed": 10, "errors": {"reset": 2, "timeout": 1}}))
    assert report.verdict(FASTER, [1.1] * 3, found) == "reached; better; errors of shared: 2 reset, 1 timeout"


def test_two_rounds_rank_nobody() -> None:
    found = samples(pyfanout=[11, 22], shared=[10, 20])
    assert report.verdict(FASTER, FASTER.values(found), found) == "reached; too few rounds to rank"


def test_a_busy_machine_is_said() -> None:
    quiet, loud = samples(pyfanout=[1, 2])
    quiet.values["others_cpu"] = 0.02
    loud.values["others_cpu"] = 0.35
    assert report.noise([quiet]) == ""
    assert "not quiet**: others used up to 35% of a core, during race" in report.noise([quiet, loud])


def test_a_row_without_its_rival_is_left_out() -> None:
    assert FASTER.values(samples(pyfanout=[1, 2])) == []
    assert "race" not in report.table(samples(pyfanout=[1, 2]))


def test_every_row_has_an_experiment_and_every_experiment_a_row() -> None:
    assert {row.experiment for row in report.ROWS} == {one.name for one in run.EXPERIMENTS}
    for row in report.ROWS:
        (experiment,) = (one for one in run.EXPERIMENTS if one.name == row.experiment)
        assert row.rival in (None, *experiment.subjects)


def test_rounds_are_interleaved_and_the_order_rotates() -> None:
    experiments = run.selected(["throughput-blocking", "tail-50"])
    order = [(round_, one.name, subjects) for round_, one, subjects in run.steps(experiments, 2)]
    assert order == [
        (0, "throughput-blocking-one-core", ("pyfanout", "reuseport")),
        (0, "tail-50", ("pyfanout", "shared")),
        (1, "throughput-blocking-one-core", ("reuseport", "pyfanout")),
        (1, "tail-50", ("shared", "pyfanout")),
    ]
    with pytest.raises(ServerError, match="no experiment is called nonsense"):
        run.selected(["nonsense"])


def test_the_readme_block_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((Path(main.__file__).parent / "README.md").read_text())
    report.write_block(readme, "first")
    report.write_block(readme, "| second |")
    text = readme.read_text()
    assert text.count("| second |") == 1
    assert "first\n" not in text.partition("## Last full run")[2]
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lost its marks"):
        report.write_block(readme, "third")


@pytest.mark.parametrize("handler", ["blocking", "asyncio"])
@pytest.mark.parametrize("name", ["reuseport", "shared", "pyfanout"])
def test_each_subject_answers_and_leaves_nothing(name: str, handler: str) -> None:
    loadgen.build()
    with Server(name, handler=handler, workers=2) as server:
        pids = [server.pid, *server.workers()]
        assert len(pids) == 3
        answers = loadgen.load(server.port, closed=4, count=100)
        assert answers.errors == {}
        assert {int(pid) for pid in answers["workers"]} <= set(server.workers())
    assert procfs.session(server.pid) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_server_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(ServerError, match=r"did not become ready; its log:[\s\S]*invalid choice"):
        Server("shared", handler="nonsense", workers=1).__enter__()


def test_cpu_time_is_counted_in_ns() -> None:
    before = procfs.usage(os.getpid())
    begin_ns = time.process_time_ns()
    while time.process_time_ns() - begin_ns < 20_000_000:
        Counter(range(100))
    used = procfs.usage(os.getpid()) - before
    assert 18_000_000 < used.cpu_ns < 200_000_000
    time.sleep(0.01)
    assert (procfs.usage(os.getpid()) - before).voluntary_switches >= 1


def test_full_runs_only_are_written_to_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    for extra in (["--quick"], ["--only", "tail"], ["--rounds", "3"]):
        with pytest.raises(SystemExit):
            main.parse(["dispatch", "--write-readme", *extra])
        assert "full run" in capsys.readouterr().err


def test_a_server_beside_its_own_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All that `python -m bench embed` does for one of them, in short."""
    monkeypatch.setattr(embed, "SLICES", 1)
    monkeypatch.setattr(embed, "HELD", 20)
    assert main.main(["embed", "--rounds", "1", "--only", "tornado"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| tornado"))
    assert [cell.strip().split()[0] for cell in row.split("|")[2:6]].count("0.000") == 0
    assert " 1.000 (1.000..1.000) " in row, "20 connections in exact turn"


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
    with Server("pyfanout", handler="asyncio", workers=1) as server:
        (worker,) = server.workers()
        maps = Path(f"/proc/{worker}/maps").read_text()
    assert re.findall(r"\S*/pyfanout/_core\S*", maps)[0].startswith(str(installed.SITE))
