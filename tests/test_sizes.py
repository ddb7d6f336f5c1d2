"""How long a file, a class and a function of pyfanout/ may be; and the exceptions, which can only become fewer."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyfanout"
FILE, CLASS, FUNCTION = "file", "class", "function"
MOST = {FILE: 450, CLASS: 400, FUNCTION: 50}
"""Lines of one part. Those of a function include those of the functions in it, which count by themselves, too."""
MOST_MEDIAN = 8
"""Lines of the function in the middle."""

Part = tuple[str, str]
"""Its kind, and where it is: "master/supervisor.py Supervisor"."""

EXCEPTIONS: dict[Part, int] = {
}
"""Parts that are longer, and how long they may be. A part that has become shorter leaves this list."""


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


def complaints(sizes: Mapping[Part, int], exceptions: Mapping[Part, int]) -> list[str]:
    found = []
    for (kind, where), lines in sizes.items():
        most = exceptions.get((kind, where), MOST[kind])
        if lines > most:
            found.append(f"{kind} {where} has {lines} lines; at most {most}")
    for (kind, where), ceiling in exceptions.items():
        if sizes.get((kind, where), 0) <= MOST[kind]:
            found.append(f"{kind} {where} needs no exception any more")
        assert ceiling > MOST[kind], f"{kind} {where}: no exception is needed for {ceiling} lines"
    return found


def measured() -> list[tuple[Part, int]]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [each for file in files for each in parts(str(file.relative_to(PACKAGE)), file.read_text())]


def test_no_part_is_too_long() -> None:
    sizes: dict[Part, int] = {}
    for part, lines in measured():  # there may be several functions of a name
        sizes[part] = max(lines, sizes.get(part, 0))
    assert complaints(sizes, EXCEPTIONS) == []


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
    part = (FUNCTION, "m.py act")
    assert complaints({part: 50}, {}) == []
    assert complaints({part: 51}, {}) == ["function m.py act has 51 lines; at most 50"]
    assert complaints({part: 60}, {part: 60}) == []
    assert complaints({part: 61}, {part: 60}) == ["function m.py act has 61 lines; at most 60"]


def test_an_exception_that_is_not_needed_is_found() -> None:
    part = (FUNCTION, "m.py act")
    assert complaints({part: 50}, {part: 60}) == ["function m.py act needs no exception any more"]
    assert complaints({}, {part: 60}) == ["function m.py act needs no exception any more"]
