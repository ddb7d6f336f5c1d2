"""`python -m bench dispatch`, `peers`, `life` or `embed` measures and makes a table; `page` makes a page of it."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import field, pictures, procfs, runner, table
from bench.field import BY_NAME
from bench.installed import ROOT
from bench.model import Question, Sample, Values
from bench.questions import ALL, RUNS, selected
from bench.server import ServerError

RESULTS = ROOT / "bench" / "results"
LAST = RESULTS / "2026-11-28"
"""The last full run beside other servers, which is kept in git."""
MEASURES = ("bench", "pyfanout", "csrc", ":!bench/results", ":!*.md")
"""A change in these may have changed the samples, or what is said of them."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, run in RUNS.items():
        verb = verbs.add_parser(name, help=run.about)
        verb.add_argument("--quick", action="store_true", help="one short round")
        verb.add_argument("--rounds", type=int, help=f"default {run.full.rounds}, with --quick 1")
        names = {"action": "append", "default": [], "metavar": "NAME"}
        verb.add_argument("--only", **names, help="questions with a name that begins with NAME")
        verb.add_argument("--subject", **names, help="subjects with a name that begins with NAME")
        verb.add_argument("--to", metavar="FOLDER", help="where to write, or to go on; default: below bench/results")
        verb.add_argument("--note", metavar="TEXT", help="a remark for the report")
        verb.add_argument("--list", action="store_true", help="only print the names of the questions")
    pages = verbs.add_parser("page", help="overview.svg and report.html, from the samples of a run")
    pages.add_argument("folder", nargs="?", type=Path, default=LAST, help="default: the last full run")
    pages.add_argument("--anyway", action="store_true", help="even if the bench, or pyfanout, has changed since")
    options = parser.parse_args(arguments)
    if options.verb != "page" and options.rounds is not None and options.rounds < 1:
        parser.error("--rounds wants 1 or more")
    return options


def header(arguments: Sequence[str], questions: Sequence[Question]) -> Values:
    """What a number is worth nothing without."""
    asked = [BY_NAME[name] for name in dict.fromkeys(name for each in questions for name in each.subjects)]
    missing = {each.name: each.missing() for each in asked}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *arguments]),
        "commit": commit or "unknown",
        "machine": f"{procfs.cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load generator": runner.check_load(),
        "versions": field.versions(),
        "absent": [f"{name}: not run, {what} is not installed" for name, what in missing.items() if what],
        "commands": {each.name: each.text() for each in asked if not missing[each.name]},
    }


def doubt(commit: str, *, refuse: bool) -> str:
    """What is to be said of samples that this commit has measured. Raises ServerError, to `refuse` them, if it measured
    otherwise than the work tree does."""
    known = commit.removesuffix("-dirty")
    command = ["git", "diff", "--quiet", known, "--", *MEASURES]
    code = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode
    if known != commit:
        return ", with changes that were not committed: whether this tree measures the same is not known"
    if code > 1:
        return ", which is not known here: whether this tree measures the same is not known either"
    if code and refuse:
        raise ServerError(f"measured by {commit}, which measures otherwise than this tree: check it out, or --anyway")
    return ", and the bench, or pyfanout, has changed since" if code else ""


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    run = RUNS[options.verb]
    scale = run.quick if options.quick else run.full
    questions = selected(run, options.only, options.subject, quick=options.quick)
    if options.list:
        print("\n".join(each.name for each in questions))
        return 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    about = header(arguments, questions) | ({"note": options.note} if options.note else {})
    folder = Path(options.to or RESULTS / f"{options.verb}-{about['date'].replace(':', '').replace('+0000', 'Z')}")
    scale = replace(scale, rounds=options.rounds or scale.rounds)
    found = runner.run(questions, scale, folder / "samples.jsonl", about)
    report = table.report(*read(folder))
    (folder / "report.md").write_text(report)
    print(report.partition("\n## ")[0])
    print(f"all of it: {folder.resolve()}", file=sys.stderr)
    return int(any("failed" in each.values and BY_NAME[each.subject].exits for each in found))


def read(folder: Path, *, refuse: bool = False) -> tuple[Values, list[Question], list[Sample]]:
    """The header of a run, with what is to be said of its samples, its questions, and these."""
    about, found = runner.read(folder / "samples.jsonl")
    about["commit"] += doubt(about["commit"], refuse=refuse)
    names = {each.experiment for each in found}
    return about, [each for each in ALL if each.experiment in names], found


def show(folder: Path, *, refuse: bool) -> int:
    about, questions, found = read(folder, refuse=refuse)
    overview = pictures.overview(questions, found)
    (folder / "overview.svg").write_text(overview)
    (folder / "report.html").write_text(pictures.page(table.report(about, questions, found), overview))
    print(folder / "report.html")
    return 0


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        if options.verb == "page":
            return show(options.folder, refuse=not options.anyway)
        return measure(options, arguments)
    except ServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
