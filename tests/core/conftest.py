"""The faults of faults.c for every test that asks for them; houses that are closed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyfanout.config import Policy

from .kit import Faults, House, compiler


@pytest.fixture(scope="session")
def all_faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Compiled and loaded once; lets everything pass until a test wants otherwise."""
    source, library = Path(__file__).with_name("faults.c"), tmp_path_factory.mktemp("faults") / "faults.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared"]
    subprocess.run([*compiler(), *flags, "-o", str(library), str(source), "-ldl"], check=True)
    return Faults(library)


@pytest.fixture
def faults(all_faults: Faults) -> Iterator[Faults]:
    all_faults.reset()
    yield all_faults
    all_faults.reset()


@pytest.fixture
def house(guard: None) -> Iterator[Callable[..., House]]:
    """Makes houses; each has one listener on 127.0.0.1 unless told otherwise."""
    with ExitStack() as stack:

        def make(seats: int = 1, policy: Policy = Policy.ROUND_ROBIN, *, listening: bool = True) -> House:
            made = stack.enter_context(House(seats, policy))
            if listening:
                made.listen()
            return made

        yield make
