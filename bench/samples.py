"""The store of a run: a file whose first line is what was run, and each other one a sample."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.model import Sample, Values
from bench.server import ServerError


def read(path: Path) -> tuple[Values, list[Sample]]:
    """The header of a run, and its samples, without a last line that a killed run did not end."""
    first, *rest = path.read_text().splitlines(keepends=True)
    return json.loads(first), [Sample(**json.loads(line)) for line in rest if line.endswith("\n")]


def resume(path: Path, header: Values) -> list[Sample]:
    """What a run that was broken off has measured; a new one is begun where there is none. Raises ServerError if it was
    not the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before, samples = read(path) if path.exists() else (header, [])
    for name in ("commit", "machine", "kernel", "python", "versions", "scale"):
        if before.get(name) != header.get(name):
            raise ServerError(f"{path} is of another {name}: {before.get(name)}, now {header.get(name)}")
    path.write_text("".join(json.dumps(line) + "\n" for line in (before, *map(asdict, samples))))
    return samples


def append(path: Path, sample: Sample) -> None:
    with path.open("a") as out:
        out.write(json.dumps(asdict(sample)) + "\n")
