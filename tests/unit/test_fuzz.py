"""The fuzzing of decoders, a short one: tests/fuzz/decoders.py. FUZZ_S seconds for each in `make faults`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sanitizers

DECODERS = Path(__file__).parents[1] / "fuzz" / "decoders.py"
FUZZ_S = int(os.environ.get("FUZZ_S", "0"))
RUNS = 30_000
CORES = 100
"""Edges that are seen of the scoreboard's decoder, if those in C are."""
SEEDS = {
    "control": [b"R\x01\x00\x01", b"F\x01no\x00Traceback", b"I\x00\x00\x00\x07", b"T"],
    "proxy": [
        *(
            b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\nGET",
            b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
            b"PROXY UNKNOWN\r\n",
        ),
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x9c\x40\x01\xbbGET",
        b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
    ],
    "join": [b"\x01J", b"\x00S", b"\x05J", b"\x0bJ", b"\x02S", b"\x00"],
    "score": [b"", b"\xff" * 4096, bytes(range(256)) * 16],
}


def guided_core(folder: Path) -> dict[str, str]:
    """The environment of a core whose edges guide the fuzzer."""
    copy, coverage = folder / "tree", folder / "coverage.o"
    copy.mkdir()
    source = DECODERS.with_name("coverage.c")
    subprocess.run([*sanitizers.compiler(), "-c", "-fPIC", "-O1", "-o", coverage, source], check=True)
    sanitizers.build(copy, "-O1 -fsanitize-coverage=trace-pc", str(coverage))
    return {"PYTHONPATH": str(copy)}


@pytest.mark.parametrize("name", SEEDS)
def test_any_bytes(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    how_long = [f"-max_total_time={FUZZ_S}"] if FUZZ_S else [f"-runs={RUNS}"]
    command = [sys.executable, str(DECODERS), name, *how_long, "-max_len=8192", str(corpus)]
    environment = os.environ | (guided_core(tmp_path) if name == "score" else {})
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=FUZZ_S + 120, check=False
    )
    found = [(path.name, path.read_bytes()[:200]) for path in tmp_path.glob("crash-*")]
    assert done.returncode == 0, f"{found}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs, done.stderr[-2000:]
    assert int(runs[1]) >= RUNS
    edges = re.search(r"INITED cov: (\d+)", done.stderr)
    assert edges, done.stderr[-2000:]
    assert int(edges[1]) > (CORES if name == "score" else 0)
    print(done.stderr.splitlines()[-1])
