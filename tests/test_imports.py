"""What may import what in pyfanout/: no module imports itself by way of others, not even for a type or by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyfanout.kind import Kind
from pyfanout.servers import OWN

ROOT = Path(__file__).parent.parent

Graph = Mapping[str, set[str]]
"""By the name of a module, those that it imports."""


def modules() -> dict[str, str]:
    """Their source, by name; that of a package ends with ".__init__"."""
    files = sorted((ROOT / "pyfanout").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files}


def imported(name: str, source: str, names: set[str]) -> Iterator[str]:
    """Those of `names` that a module imports: anywhere in it, also for types only, and by name if it has importlib.
    That each module has its package imported before it does not count."""
    nodes = list(ast.walk(ast.parse(source)))
    by_name = False
    for node in nodes:
        match node:
            case ast.Import():
                by_name = by_name or any(each.name == "importlib" for each in node.names)
                yield from names & {each.name for each in node.names}
            case ast.ImportFrom():
                assert node.level == 0, f"{name}: a relative import, which this test does not understand"
                for each in node.names:
                    below = f"{node.module}.{each.name}"
                    yield from names & {below if below in names else node.module or ""}
    for node in nodes if by_name else ():
        match node:
            case ast.JoinedStr([ast.Constant(str(text)), *_]):  # one module for each kind of application or server
                yield from names & {text + each for each in (*OWN, *(kind.value for kind in Kind))}
            case ast.Constant(str(text)):
                yield from names & {text.partition(":")[0]}


def graph_of(sources: Mapping[str, str]) -> Graph:
    short = {name.removesuffix(".__init__"): source for name, source in sources.items()}
    return {name: set(imported(name, source, set(short))) - {name} for name, source in short.items()}


def reachable(graph: Graph, start: str) -> set[str]:
    """From a module by one import or more."""
    found: set[str] = set()
    to_do = [start]
    while to_do:
        for each in graph[to_do.pop()] - found:
            found.add(each)
            to_do.append(each)
    return found


def circles(graph: Graph) -> dict[str, set[str]]:
    """The modules that reach themselves, and of each the imports that lead back to it."""
    reach = {name: reachable(graph, name) for name in graph}
    return {name: {each for each in graph[name] if name in reach[each]} for name in graph if name in reach[name]}


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(graph_of(modules())) == {}


def test_a_circle_is_found() -> None:
    """In each of the ways in which a module can be imported."""
    ways = ["import b", "from b import x", "if TYPE_CHECKING:\n    import b", "def act():\n    from b import x"]
    for way in [*ways, "import importlib\nimportlib.import_module('b')", "import importlib\nNAMES = {1: 'b:x'}"]:
        assert circles(graph_of({"a": way, "b": "import c", "c": "import a", "d": "import a"})) == {
            "a": {"b"},
            "b": {"c"},
            "c": {"a"},
        }, way
    assert circles(graph_of({"a": "NAME = 'b'", "b": "import a"})) == {}


def test_a_module_of_a_package_is_told_from_the_package() -> None:
    sources = {"p.__init__": "from p.a import x", "p.a": "from p import b", "p.b": ""}
    assert circles(graph_of(sources)) == {}
    sources["p.b"] = "from p import x"
    assert circles(graph_of(sources)).keys() == {"p", "p.a", "p.b"}


def test_modules_that_are_imported_by_a_name_that_is_made_are_found() -> None:
    sources = {"e.__init__": "import importlib\nf'e.{x}'", "e.waitress": "import e", "e.a": "import e"}
    assert circles(graph_of(sources)).keys() == {"e", "e.waitress"}


def test_pyfanout_imports_no_server_and_depends_on_cffi_alone() -> None:
    code = (
        "import sys; known = set(sys.modules); import pyfanout, pyfanout.__main__; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - known} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"pyfanout", "_cffi_backend"}
