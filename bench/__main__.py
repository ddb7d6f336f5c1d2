"""`python -m bench dispatch`, `life` and `embed`: measure every row of a table and print it; `peers`: a report."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import (
    embed,
    field,
    life,
    loadgen,
    page,
    pictures,
    procfs,
    questions,
    report,
    run,
    selfcheck,
    standings,
)
from bench.installed import ROOT
from bench.server import ServerError

RESULTS = ROOT / "bench" / "results"
README = ROOT / "bench" / "README.md"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    verbs = parser.add_subparsers(dest="verb", required=True)
    dispatch = verbs.add_parser("dispatch", help="pyfanout against the same handlers on what it replaces")
    dispatch.add_argument("--quick", action="store_true", help="one short round: about 2 minutes instead of 15")
    dispatch.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    dispatch.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="experiments whose name begins so (repeatable)",
    )
    dispatch.add_argument("--subjects", help="only these, separated by commas; rows need all of theirs")
    dispatch.add_argument(
        "--write-readme", action="store_true", help="put the table into bench/README.md (full runs only)"
    )
    dispatch.add_argument("--list", action="store_true", help="print the names of the experiments and leave")
    lives = verbs.add_parser("life", help="what clients see while workers die, hang, are replaced and scaled")
    lives.add_argument("--quick", action="store_true", help="one short round: about 2 minutes instead of 25")
    lives.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    lives.add_argument("--only", action="append", default=[], metavar="NAME", help="rows whose name begins so")
    embeds = verbs.add_parser("embed", help="servers under pyfanout against their own way to use several processes")
    embeds.add_argument("--rounds", type=int, help="default 3")
    embeds.add_argument("--only", action="append", default=[], metavar="NAME", help="servers whose name begins so")
    fields = verbs.add_parser("peers", help="pyfanout beside who else serves with several processes: a report")
    fields.add_argument("--quick", action="store_true", help="one short round: about 5 minutes instead of 60")
    fields.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    fields.add_argument("--only", action="append", default=[], metavar="NAME", help="questions whose name begins so")
    fields.add_argument("--who", action="append", default=[], metavar="NAME", help="subjects whose name begins so")
    fields.add_argument("--to", metavar="FOLDER", help="where to write, or to go on; default bench/results/<date>")
    fields.add_argument("--again", metavar="JSONL", help="do not measure: make the report of these samples")
    fields.add_argument("--note", metavar="TEXT", help="what readers shall know of this run")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds wants 1 or more")
    if options.verb != "dispatch":
        return options
    if options.write_readme and (options.quick or options.only or options.subjects or options.rounds):
        parser.error("--write-readme is for a full run: not with --quick, --only, --subjects, --rounds")
    return options


def header(arguments: list[str]) -> dict[str, Any]:
    """What a number is worth nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *arguments]),
        "commit": commit(),
        "machine": f"{procfs.cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def commit() -> str:
    """The commit that was measured, marked when the tree is not what was committed."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def dispatch(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.list:
        print("\n".join(one.name for one in run.EXPERIMENTS))
        return 0
    scale = run.QUICK if options.quick else run.FULL
    if options.rounds is not None:
        scale = replace(scale, rounds=options.rounds)
    experiments = run.selected(options.only)
    if options.subjects:
        wanted = options.subjects.split(",")
        experiments = [
            replace(one, subjects=tuple(name for name in one.subjects if name in wanted)) for one in experiments
        ]
        experiments = [one for one in experiments if one.subjects]
    about = header(arguments)
    keep = RESULTS / f"dispatch-{about['date'].replace(':', '').replace('+0000', 'Z')}.jsonl"
    samples = run.run(experiments, scale, keep, about)
    parts = [
        "\n".join(f"- {name}: {value}" for name, value in about.items()),
        report.noise(samples),
        report.table(samples),
        "Behind the ratios:",
        report.absolutes(samples),
    ]
    block = "\n\n".join(part for part in parts if part)
    print(block)
    print(f"all samples: {keep.relative_to(ROOT)}", file=sys.stderr)
    if options.write_readme:
        report.write_block(README, block)
    return 0


def lives(options: argparse.Namespace, arguments: list[str]) -> int:
    scale = life.QUICK if options.quick else life.FULL
    if options.rounds is not None:
        scale = replace(scale, rounds=options.rounds)
    lines = life.run(scale, options.only)
    about = "\n".join(f"- {name}: {value}" for name, value in header(arguments).items())
    print("\n".join([about, "", *lines]))
    return 0


def embeds(options: argparse.Namespace, arguments: list[str]) -> int:
    lines = embed.run(options.rounds or 3, options.only)
    about = "\n".join(f"- {name}: {value}" for name, value in header(arguments).items())
    print("\n".join([about, "", *lines]))
    return 0


def peers(options: argparse.Namespace, arguments: list[str]) -> int:
    note = {"note": options.note} if options.note else {}
    if options.again:
        keep = Path(options.again)
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        scale = questions.QUICK if options.quick else questions.FULL
        if options.rounds is not None:
            scale = replace(scale, rounds=options.rounds)
        loadgen.build()
        experiments = questions.experiments(options.only, options.who, quick=options.quick)
        runs = dict.fromkeys(name for one in experiments for name in one.subjects)
        about = header(arguments) | {"versions": field.versions(), "absent": standings.absent()}
        about["commands"] = {name: field.BY_NAME[name].command() for name in runs}
        about["load generator"] = selfcheck.check(run.choose_cores()[1])
        folder = Path(options.to) if options.to else RESULTS / about["date"].replace(":", "").replace("+0000", "Z")
        keep = folder / "samples.jsonl"
        run.run(experiments, scale, keep, about | note)
    about, samples = run.read(keep)
    about |= note
    about["commit"] += standings.doubt(about["commit"], refuse=bool(options.again))
    (keep.parent / "report.md").write_text(page.markdown(about, samples))
    (keep.parent / "report.html").write_text(page.page(about, samples))
    (keep.parent / "overview.svg").write_text(pictures.overview(samples))
    print(keep.parent.resolve())
    return 0


VERBS = {"dispatch": dispatch, "life": lives, "embed": embeds, "peers": peers}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        return VERBS[options.verb](options, arguments)
    except ServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
