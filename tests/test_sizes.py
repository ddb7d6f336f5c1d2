"""How long a file, a class and a function of pyfanout/ may be."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyfanout"
FILE, CLASS, FUNCTION = "file", "class", "function"
MOST = {FILE: 450, CLASS: 400, FUNCTION: 50}
"""Lines of one part. Those of a function include those of the functions in it, which count by themselves, too."""
MOST_MEDIAN = 8
"""Lines of the function in the middle."""

Part = tuple[str, str]
"""Its kind, and where it is: "master/supervisor.py Supervisor"."""


def parts(name: str, source: str) -> Iterator[tuple[Part, int]]:
    """Each part of a file, and its number of lines, without decorators."""

    def within(node: ast.AST, path: str) -> Iterator[tuple[Part, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{path}.{child.name}" if path else child.name
                assert child.end_lineno is not None
                kind = CLASS if isinstance(child, ast.ClassDef) else FUNCTION
                yield (kind, f"{name} {inner}"), child.end_lineno - child.lineno + 1
                yield from within(child, inner)
            else:
                yield from within(child, path)

    yield (FILE, name), len(source.splitlines())
    yield from within(ast.parse(source), "")


def complaints(sizes: Iterable[tuple[Part, int]]) -> list[str]:
    return [
        f"{kind} {where} has {lines} lines; at most {MOST[kind]}"
        for (kind, where), lines in sizes
        if lines > MOST[kind]
    ]


def measured() -> list[tuple[Part, int]]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [each for file in files for each in parts(str(file.relative_to(PACKAGE)), file.read_text())]


def test_no_part_is_too_long() -> None:
    assert complaints(measured()) == []


def test_the_median_of_functions() -> None:
    assert statistics.median(lines for (kind, _), lines in measured() if kind == FUNCTION) <= MOST_MEDIAN


def test_a_part_is_measured() -> None:
    source = (
        "class A:\n    @property\n    def b(self):\n        def c(): ...\n        if c:\n            class D: ...\n"
    )
    assert dict(parts("m.py", source)) == {
        (FILE, "m.py"): 6,
        (CLASS, "m.py A"): 6,
        (FUNCTION, "m.py A.b"): 4,
        (FUNCTION, "m.py A.b.c"): 1,
        (CLASS, "m.py A.b.D"): 1,
    }


def test_a_part_that_is_too_long_is_found() -> None:
    assert complaints([((FUNCTION, "m.py act"), 50), ((CLASS, "m.py A"), 400)]) == []
    assert complaints([((FUNCTION, "m.py act"), 51)]) == ["function m.py act has 51 lines; at most 50"]
