"""Builds and runs the load generator, bench/load.c, and reads its one JSON object."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE / "load.c"
BINARY = HERE / "load"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")

# Whatever it is asked, it stops by itself after duration + timeout; this only catches a bug in it.
GRACE_S = 30.0


def build(binary: Path = BINARY) -> Path:
    """Compiles load.c when `binary` is missing or older than its source; returns `binary`."""
    if binary.exists() and binary.stat().st_mtime >= SOURCE.stat().st_mtime:
        return binary
    subprocess.run(["cc", *FLAGS, "-o", str(binary), str(SOURCE), "-lm"], check=True)
    return binary


class Answers(dict[str, Any]):
    """What load printed; the names are in bench/load.c, report()."""

    @property
    def errors(self) -> dict[str, int]:
        """Only the kinds that happened."""
        return {kind: count for kind, count in self["errors"].items() if count}

    def fast_ns(self, percentile: str) -> int:
        return int(self["latency_ns"]["fast"][percentile])


Knob = float | str | None


def load(port: int, *, run_s: float = 60.0, **knobs: Knob) -> Answers:
    """One run against 127.0.0.1:`port`. `knobs` are the options of load; `run_s` is how long it may take."""
    return answers(start(port, **knobs), run_s)


def start(port: int, **knobs: Knob) -> subprocess.Popen[bytes]:
    """The same, while something else is done; then `answers`."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items() if value is not None]
    return subprocess.Popen([str(BINARY), *options, f"127.0.0.1:{port}"], stdout=subprocess.PIPE)


def answers(process: subprocess.Popen[bytes], run_s: float = 60.0) -> Answers:
    """What a run says at its end."""
    with process:
        try:
            printed, _ = process.communicate(timeout=run_s + GRACE_S)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Answers(json.loads(printed))


def common(*runs: Answers) -> dict[str, Any]:
    """What every sample keeps besides its numbers: errors by kind, how the load generator was, all it said."""
    return {
        "errors": dict(sum((Counter(one.errors) for one in runs), Counter[str]())),
        "load_busy": statistics.median(one["self"]["busy_fraction"] for one in runs),
        "late_start_p99_us": statistics.median(one["late_start_ns"]["p99"] for one in runs) / 1e3,
        "load": [dict(one) for one in runs],
    }
