"""Everything at random, under load: the invariants of the design are the oracle.

A worker is killed, stopped, continued, told to drain, crashes; the server is reloaded and scaled; clients come all the
time. Each must get its whole answer, or have been in the hands of a worker that was killed, and the log says how many
those were. Nobody is refused, nobody hangs. When it is over the server is what it was at the start.

`make chaos` runs it for longer: CHAOS_S seconds for each kind of worker.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

from harness import Server, connect, read_all

MakeServer = Callable[..., Server]

SECONDS = float(os.environ.get("CHAOS_S", "6"))
CLIENTS = 6
MOST_WORKERS = 6

DEEDS = {"kill": 6, "stop": 1, "nap": 3, "term": 3, "crash": 1, "reload": 3, "more": 2, "fewer": 2}
"""How often, relatively."""

EXPECTED = (
    r"is hung: ",
    r"Python stacks at death",
    r"Fatal Python error: ",
    r"does not stop within 2 s of SIGQUIT and is killed",
    r"has not finished after",
    r"reload aborted",
    r"FAILED",
)


class Clients:
    """Threads that ask one thing after another, and note how it went."""

    def __init__(self, address: str, seed: int) -> None:
        self.fates: Counter[str] = Counter()
        self._address = address
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(random.Random(seed + n),)) for n in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, chance: random.Random) -> None:
        while not self._over.is_set():
            line = chance.choice(["identity", "identity", "sleep 0.002", "sleep 0.02"])
            try:
                with connect(self._address, line, timeout=30) as client:
                    answer = read_all(client)
            except (ConnectionResetError, BrokenPipeError):
                self.fates["broken"] += 1
            except OSError as error:  # refused, timed out: never
                self.fates[f"{type(error).__name__}: {error}"] += 1
            else:
                self.fates["answered" if answer.endswith(b"\n") else "broken"] += 1


def torment(one: Server, chance: random.Random) -> None:
    """One random deed, and a random rest. The rests do not synchronise anything: they are part of the chaos."""
    workers = one.workers
    if workers:
        pid = chance.choice(workers)
        deed = chance.choices(list(DEEDS), list(DEEDS.values()))
        with contextlib.suppress(ProcessLookupError):
            match deed[0]:
                case "kill":
                    os.kill(pid, signal.SIGKILL)
                case "stop":
                    os.kill(pid, signal.SIGSTOP)
                case "nap":
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(chance.uniform(0, 0.6))  # around the verdict's time
                    os.kill(pid, signal.SIGCONT)
                case "term":
                    os.kill(pid, signal.SIGTERM)
                case "crash":
                    os.kill(pid, signal.SIGSEGV)
                case "reload":
                    one.send(signal.SIGHUP)
                case "more" if len(workers) < MOST_WORKERS:
                    one.send(signal.SIGTTIN)
                case "fewer" if len(workers) > 2:
                    one.send(signal.SIGTTOU)
    time.sleep(chance.uniform(0, 0.1))


def test_chaos(server: MakeServer, handler: str, options: dict, rng: random.Random) -> None:
    one = server().start(
        f"apps:{handler}",
        workers=3,
        ping_interval=0.1,
        ping_timeout=0.5,
        timeout=1,
        min_uptime=0,
        drain_timeout=2,
        boot_timeout=5,
        **options,
    )
    one.expect(*EXPECTED)
    end = time.monotonic() + SECONDS
    with Clients(one.address, rng.getrandbits(32)) as clients:
        while time.monotonic() < end:
            torment(one, rng)
        for pid in one.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        before = clients.fates["answered"]
        one.wait_until(lambda: clients.fates["answered"] > before + 100, "it serves again")
    told = f"{dict(clients.fates)}, {one.in_hands} in the hands of workers that died"
    assert set(clients.fates) <= {"answered", "broken"}, told
    assert clients.fates["broken"] <= one.in_hands, told
    assert clients.fates["answered"] > 100 * SECONDS / 6, told
    one.wait_until(lambda: not one.zombies, "all the dead are reaped")
    one.wait_idle_master()
    assert one.stop() == 0
