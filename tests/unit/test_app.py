"""app: each way in which `module:attr` can be wrong."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyfanout.app import check_spec, import_from
from pyfanout.errors import ConfigError, LoadError


@pytest.mark.parametrize(
    "spec",
    [
        "",
        ":",
        "app",
        "app:",
        ":handler",
        "a b:c",
        "app:x()",
        "app:1",
        "a..b:c",
        ".app:c",
        "app:a.",
        "a:b:c",
        "a-b:c",
    ],
)
def test_malformed_spec(spec: str) -> None:
    for check in (check_spec, import_from):
        with pytest.raises(ConfigError, match=re.escape(f"the application {spec!r}")):
            check(spec)


def test_a_file_is_not_a_module() -> None:
    with pytest.raises(ConfigError, match=r"such as examples\.hello:main"):
        check_spec("./examples/hello.py:main")
    with pytest.raises(ConfigError, match=r"such as hello:handler"):
        check_spec("hello.py")


def test_well_formed_spec() -> None:
    assert check_spec("pack.age.module:Class.method") == ("pack.age.module", "Class.method")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from, which is the current one; modules and the path are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_import_from_the_current_folder(folder: Path) -> None:
    (folder / "pf_good.py").write_text("def handler(conn, addr): return 7\n")
    handler: Any = import_from("pf_good:handler")
    assert handler(None, None) == 7
    import_from("pf_good:handler")
    assert sys.path.count(os.getcwd()) == 1
    assert sys.path[0] == os.getcwd()


def test_the_current_folder_comes_first(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/pf_twice.py").write_text("def handler(conn, addr): return 'elsewhere'\n")
    (folder / "pf_twice.py").write_text("def handler(conn, addr): return 'here'\n")
    sys.path[:0] = [str(folder / "elsewhere"), os.getcwd()]
    handler: Any = import_from("pf_twice:handler")
    assert handler(None, None) == "here"


def test_import_of_dotted_names(folder: Path) -> None:
    (folder / "pf_pack").mkdir()
    (folder / "pf_pack/__init__.py").write_text("")
    (folder / "pf_pack/sub.py").write_text("class App:\n    @staticmethod\n    def serve(conn, addr): return 8\n")
    handler: Any = import_from("pf_pack.sub:App.serve")
    assert handler(None, None) == 8


@pytest.mark.parametrize(
    ("spec", "missing"),
    [("pf_none:x", "pf_none"), ("pf_none.sub:x", "pf_none"), ("os.pf_none:x", "os.pf_none")],
)
def test_no_such_module(folder: Path, spec: str, missing: str) -> None:
    with pytest.raises(LoadError, match=f"no module named '{missing}'") as caught:
        import_from(spec)
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import pf_not_there", "ModuleNotFoundError: No module named 'pf_not_there'"),
        ("import os.pf_not_there", "ModuleNotFoundError"),
        ("raise ModuleNotFoundError('by hand')", "ModuleNotFoundError: by hand"),
        ("from os import pf_not_there", "ImportError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
        ("raise KeyError", "KeyError"),
    ],
)
def test_import_that_fails_keeps_its_cause(folder: Path, code: str, says: str) -> None:
    (folder / "pf_bad.py").write_text(code + "\n")
    with pytest.raises(LoadError, match=re.escape(f"the import of 'pf_bad' failed: {says}")) as caught:
        import_from("pf_bad:handler")
    assert "\n" not in str(caught.value)
    cause = caught.value.__cause__
    assert cause is not None
    assert "pf_bad.py" in "".join(traceback.format_exception(cause))


def test_missing_attribute_names_what_there_is(folder: Path) -> None:
    (folder / "pf_attr.py").write_text(
        "from os.path import join\nimport os\nVALUE = 3\n"
        "def handler(conn, addr): ...\nclass Server:\n    def serve(self): ...\ndef _hidden(): ...\n"
    )
    with pytest.raises(LoadError, match=r"'pf_attr' has no attribute 'handle'; did you mean handler\?"):
        import_from("pf_attr:handle")
    with pytest.raises(LoadError, match=r"no attribute 'xyz'; it has handler, Server$"):
        import_from("pf_attr:xyz")
    with pytest.raises(LoadError, match=r"'pf_attr.Server' has no attribute 'xyz'; it has serve$"):
        import_from("pf_attr:Server.xyz")
    with pytest.raises(LoadError, match=r"'pf_attr.VALUE' has no attribute 'xyz'$"):
        import_from("pf_attr:VALUE.xyz")


def test_not_callable(folder: Path) -> None:
    (folder / "pf_value.py").write_text("handler = 3\n")
    with pytest.raises(LoadError, match="'pf_value:handler' is not a function: it is of type int"):
        import_from("pf_value:handler")


def test_current_folder_that_is_gone(folder: Path) -> None:
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(LoadError, match="deleted"):
        import_from("pf_none:x")
    found: object = import_from("os.path:join")
    assert found is os.path.join
