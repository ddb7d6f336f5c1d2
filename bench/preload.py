"""What a fork costs a master that has the application loaded (`--preload`): `python -m bench.preload`.

For each size of heap: how long a fork takes, which is how long no connection is accepted, and how much of the heap a
child has copied when it has read each object once, for to read an object is to write to its reference count.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

from bench import procfs

SIZES_MB = (0, 50, 100, 200, 400)
FORKS = 30
ROLLUP = Path("/proc/self/smaps_rollup")


def filled(megabytes: int) -> list[dict[str, str]]:
    """Objects of about that size, as an application has them."""
    before = memory_mb("Rss")
    heap: list[dict[str, str]] = []
    while memory_mb("Rss") - before < megabytes:
        heap += [{"name": f"object {len(heap) + each}", "kind": f"kind {each}"} for each in range(2000)]
    return heap


def memory_mb(*kinds: str) -> float:
    return sum(int(procfs.field(ROLLUP, kind)) for kind in kinds) / 1024


def fork_ms() -> float:
    """The processor time of the parent in a fork: whatever runs beside it does not count."""
    begin = time.thread_time()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    taken = time.thread_time() - begin
    os.waitpid(pid, 0)
    return taken * 1e3


def read(heap: list[dict[str, str]], result: Connection) -> None:
    """In a child: how much it copies when it reads each object, and in how many milliseconds of processor time."""
    before, begin = memory_mb("Private_Clean", "Private_Dirty"), time.thread_time()
    for each in heap:
        for _ in each.values():
            pass
    taken = time.thread_time() - begin
    result.send((memory_mb("Private_Clean", "Private_Dirty") - before, taken * 1e3))


def main() -> None:
    print(f"{'heap MB':>8} {'fork ms (median, least, most)':>32} {'copied MB':>10} {'in ms':>7}")
    for megabytes in SIZES_MB:
        heap = filled(megabytes)
        gc.collect()
        gc.freeze()  # as the master does: a collection in the child would write to every object
        times = [fork_ms() for _ in range(FORKS)]
        result, theirs = Pipe()
        child = get_context("fork").Process(target=read, args=(heap, theirs))
        child.start()
        (copied, taken), _ = result.recv(), child.join()
        spread = f"{statistics.median(times):.2f}, {min(times):.2f}, {max(times):.2f}"
        print(f"{memory_mb('Rss'):8.0f} {spread:>32} {copied:10.0f} {taken:7.0f}", flush=True)
        gc.unfreeze()
        del heap
        gc.collect()


if __name__ == "__main__":
    main()
