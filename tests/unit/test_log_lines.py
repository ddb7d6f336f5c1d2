"""Log lines are an interface: docs/signals.md lists each of them, by level, and lists no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "critical": "critical"}
LEVELS |= {"exception": "error", "log": "more than one level"}
Line = tuple[str, str]
"""Its level, and its text with %s and the like where the fields are."""


def text_of(node: ast.expr, texts: dict[str, str]) -> str:
    """`texts`: what its names stand for, where that is a text. Another name is shown in braces."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.BinOp(left, ast.Add(), right):
            return text_of(left, texts) + text_of(right, texts)
        case ast.Name(name):
            return texts.get(name, f"{{{name}}}")
    raise AssertionError(f"{ast.unparse(node)} is no text of a log line that this test understands")


def in_code(source: str) -> Iterator[Line]:
    nodes = list(ast.walk(ast.parse(source)))
    texts = {}
    for node in nodes:
        match node:
            case ast.Assign([ast.Name(name)], ast.Constant(str(text))):
                texts[name] = text
    for node in nodes:
        match node:
            case ast.Call(ast.Attribute(ast.Name("log") | ast.Attribute(_, "log"), method), args) if method in LEVELS:
                level, *_ = args if method == "log" else [None]
                text = args[0 if level is None else 1]
                yield LEVELS[method], text_of(text, texts).replace("\n", r"\n")


def in_document(text: str) -> Iterator[Line]:
    _, _, section = text.partition("\n## Log lines\n")
    for part in re.split(r"^### ", section, flags=re.M)[1:]:
        level, _, rest = part.partition("\n")
        for line in re.findall(r"^\| `(.+?)` \|", rest.partition("\n## ")[0], re.M):
            yield level, line


def differences(code: set[Line], document: set[Line]) -> list[str]:
    """In words that say what to do."""
    missing = [f"docs/signals.md lacks, under {level}: {line}" for level, line in sorted(code - document)]
    gone = [f"docs/signals.md has, under {level}, what no code logs: {line}" for level, line in sorted(document - code)]
    return missing + gone


def all_in_code() -> set[Line]:
    return {line for path in sorted((ROOT / "pyfanout").rglob("*.py")) for line in in_code(path.read_text())}


def test_each_line_is_listed_and_no_other() -> None:
    code, document = all_in_code(), list(in_document((ROOT / "docs/signals.md").read_text()))
    assert len(code) > 50
    assert len(document) == len(set(document))
    assert differences(code, set(document)) == []


SOURCE = r"""
def report(log, worker, line, bad):
    what = "it is hung for %.1f s"
    log.warning("%s: " + what, worker, 3)
    worker.log.error("%s died:\n%s", worker, line)
    log.log(10 if bad else 20, "%s is gone", worker)
    log.exception("failed")
    log.info(line)
    dialog.info("no log")
"""
LISTED = r"""
## Log lines

### warning

| line | fields |
|---|---|
| `%s: it is hung for %.1f s` | worker, seconds |

### error

| `%s died:\n%s` | worker, stacks |
| `failed` | |

### more than one level

| `%s is gone` | worker |

### info

| `{line}` | |

## Next

| `no line` | |
"""


def test_lines_are_found() -> None:
    assert set(in_code(SOURCE)) == set(in_document(LISTED))


@pytest.mark.parametrize("line", [line for _, line in in_document(LISTED)])
def test_a_line_that_is_not_listed_is_found(line: str) -> None:
    found = differences(set(in_code(SOURCE)), set(in_document(LISTED.replace(f"| `{line}` |", "| |"))))
    assert len(found) == 1
    assert found[0].startswith("docs/signals.md lacks, under ")
    assert found[0].endswith(line)


def test_a_line_that_nothing_logs_is_found() -> None:
    found = differences(set(in_code(SOURCE.replace("is gone", "has left"))), set(in_document(LISTED)))
    assert found == [
        "docs/signals.md lacks, under more than one level: %s has left",
        "docs/signals.md has, under more than one level, what no code logs: %s is gone",
    ]


def test_what_is_not_understood_is_refused() -> None:
    with pytest.raises(AssertionError, match="is no text of a log line"):
        list(in_code('log.info(f"{worker} has left")'))
