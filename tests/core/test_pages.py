"""Each worker has its page of the scoreboard, whatever the size of the machine's pages: this file's other tests, and
what else is about pages, once more where they are larger."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import SIZES, larger

from pyfanout.config import Policy
from pyfanout.core import Core, EndFds, WorkerEnds

from .kit import House, Worker, in_child

SEATS = 18
"""More than scores of 4 KiB would fit on a page of 64."""

CLIENTS = 3
"""Of each worker, which is done with one of them."""

PAGES = ("test_abandon_keeps", "disowned", "new_generation", "sent_what_it_needs", "full_of_lies", "liar_in_the_pool")
FILES = ("test_pages.py", "test_take.py", "test_route.py")


def be_born(house: House, seat: int, *, shared: bool) -> WorkerEnds:
    """In the child: as the master's own, or as a joined worker, which is sent what it needs."""
    fds = EndFds(*map(os.dup, house.core.ends(seat))) if shared else None
    mine = house.core.abandon(seat)
    if fds is None:
        return mine
    os.close(mine.pool_fd)
    os.close(mine.seat_fd)
    mine.disown()  # what it writes there is not seen
    mine.done()
    return WorkerEnds.of(fds, seat)


def live(house: House, seat: int, *, pool: bool, shared: bool) -> None:
    """In the child: take what is there, be done with one, and fork a child that goes on as if it were the worker."""
    ends = be_born(house, seat, shared=shared)
    worker = Worker(house, seat, ends, pool)
    assert len(worker.take(CLIENTS)) == CLIENTS
    worker.done()

    def pretend() -> None:
        ends.disown()
        worker.done(CLIENTS)

    in_child(pretend)


@pytest.mark.parametrize("shared", [False, True], ids=["child", "joined"])
def test_lives_of_workers(shared: bool) -> None:
    """Each place has two workers, one after the other, with a channel of its own and then in the pool: they write to
    their own page and to no other, and a child that they fork to none."""
    assert int(os.environ.get("PAGE_BYTES", mmap.PAGESIZE)) == mmap.PAGESIZE
    with House(SEATS, shared=shared) as house:
        house.listen()
        for generation, pool in ((1, False), (2, True)):
            for seat in range(SEATS):
                house.enter(seat, pool=pool)
                house.connect(CLIENTS)
                house.settle()
                in_child(lambda seat=seat, pool=pool: live(house, seat, pool=pool, shared=shared))  # type: ignore[misc]
                house.core.leave(seat)
            views = [house.core.look(seat) for seat in range(SEATS)]
            assert {(view.generation, view.taken, view.done) for view in views} == {(generation, CLIENTS, 1)}
        house.check()


def test_memory_is_for_pages_that_are_used() -> None:
    """A core with all its places is small until they are used, also where pages are large."""
    before = shared_kib()
    with Core(2048, Policy.ROUND_ROBIN) as core:
        assert shared_kib() == before
        for seat in range(3):
            core.begin(seat, 1, seat)
        page_kib = mmap.PAGESIZE // 1024
        assert before < shared_kib() <= before + 3 * page_kib + max(page_kib, 12), "three scores, and the turns"


def shared_kib() -> int:
    """Memory of this process that others may share, and that is no file's."""
    return int(re.findall(r"RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


@pytest.mark.parametrize("page_bytes", SIZES)
def test_larger_pages(page_bytes: int, tmp_path: Path) -> None:
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    chosen = " or ".join(("lives_of_workers", "memory_is", *PAGES))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = os.environ | larger(tmp_path, page_bytes)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) == 2 + 1 + 3 + 5, "each of them"
