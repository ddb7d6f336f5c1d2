"""A process is "it", and a sentence for users has a subject. Only a guard: it finds the words of a relapse."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyfanout.config import options

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
DOCUMENTS += [ROOT / "bench/README.md"]
PERSONS = re.compile(r"\b(who|whom|whoever|he|him|his|(?:no|some|every|any)body|of ours|of theirs)\b", re.I)
CODE = re.compile(r"^```.*?^```|^    .*?$|``.*?``|`[^`]*`", re.S | re.M)


def persons(text: str) -> Iterator[str]:
    """Lines in which a process would be a person. Code, and quoted lines of the log, are left out."""
    for line in CODE.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines():
        if PERSONS.search(line):
            yield line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_process_is_a_person(document: Path) -> None:
    assert list(persons(document.read_text())) == []


def for_users(source: str) -> Iterator[str]:
    """The texts of its log lines and of its exceptions."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise() | ast.Call(ast.Attribute(ast.Name("log") | ast.Attribute(_, "log"))):
                texts = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
                yield from (text for text in texts if isinstance(text, str))


@pytest.mark.parametrize("module", sorted((ROOT / "pyfanout").rglob("*.py")), ids=lambda path: path.stem)
def test_no_line_of_the_log_and_no_error_has_one(module: Path) -> None:
    assert [text for text in for_users(module.read_text()) if PERSONS.search(text)] == []


def test_no_option_has_one() -> None:
    assert [option.help for option in options().values() if PERSONS.search(option.help)] == []


def test_texts_for_users_are_found() -> None:
    source = 'def act(log):\n    "nobody"\n    log.error("somebody %s", who)\n    raise OSError(f"{1}: his")\n'
    assert sorted(for_users(source)) == [": his", "somebody %s"]


@pytest.mark.parametrize("sentence", ["It serves while nobody waits.", "Who is hung leaves.", "a stop of ours"])
def test_a_person_is_found(sentence: str) -> None:
    assert list(persons(f"A worker, whose client waits.\n\n{sentence}\n")) == [sentence]


def test_code_is_left_out() -> None:
    text = "`--who NAME` of `bench`\n\n```sh\nwho  # is here\n```\n\n    who | wc\n\nThe end: nobody.\n"
    assert list(persons(text)) == ["The end: nobody."]
