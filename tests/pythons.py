"""The tests with newer Pythons than the oldest that is supported: `make pythons`. Arguments go to pytest.

Each Python is looked for among the versions of pyenv, then on PATH, then in Debian: a suite is unpacked into a folder
and entered by chroot(8). The machine's own packages stay as they are. A Python that cannot be had is named at the end,
and fails nothing; one that cannot build pyfanout, or whose tests fail, does. All set-ups go on at the same time, for
they wait for the network; then the tests of one version run after those of another, each set of them on all cores.

All that is made is in .pythons, which is removed at the end, and before the start if a run was killed: the next run
makes everything anew. As root, what runs has processes and mounts of its own, which end with it, and with this program.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".pythons"

SUITES = {"3.12": None, "3.13": "trixie", "3.14": "sid"}
"""The versions, and Debian's suites that have them."""

PACKAGES = ("gcc", "libc6-dev", "procps", "util-linux")
"""What the tests need of Debian besides Python. util-linux: `unshare`."""

SETUP_S = float(os.environ.get("PYTHONS_SETUP_S", "300"))
"""Seconds for the set-up of all versions. Debian's takes 60 to 80 on an idle machine. One that takes longer, on a slow
network, counts as not to be had: what CI may take has a limit, too."""

TESTS_S = float(os.environ.get("PYTHONS_TESTS_S", "600"))
"""Seconds for the tests of one version; they fail if it takes longer."""

LEFT_OUT = [f"core/test_{name}.py" for name in ("model", "pages", "random", "sweep", "threads")]
LEFT_OUT += [f"unit/test_{name}.py" for name in ("every_life", "fuzz")]
"""Tests that try every order of events, each call that may fail, or other sizes of pages: they take long, and search
for faults of the core and of the master, which are the same under each Python. Fuzzing needs a tool that newer Pythons
do not have yet."""

LIVES = ("exits", "forks", "health", "reload", "shutdown")
"""The lives of workers: how they fork, hang, are replaced and leave. All files of tests/system would take CI too long;
arguments may name others."""

TESTS = [
    *("tests/unit", "tests/core", *(f"tests/system/test_{name}.py" for name in LIVES)),
    *(f"--ignore=tests/{name}" for name in LEFT_OUT),
]

PROBE = (
    "import ensurepip, sys, sysconfig, venv; print(*sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED'))"
)


class NotHadError(Exception):
    """Why a Python cannot be had here."""


@dataclass
class Python:
    """One that can be run. `home` is a folder for its environment and a copy of the tree, and `inside` is what that is
    called where `enter` leads to."""

    source: str
    executable: str
    home: Path
    inside: Path
    enter: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def of_venv(self, *words: str) -> list[str]:
        """A command for the Python of the environment, in the copy of the tree."""
        return ["env", f"--chdir={self.inside / 'tree'}", str(self.inside / "venv/bin/python"), *words]


# ---- commands ------------------------------------------------------------------------------------------------------

CONFINED = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc")
"""Runs a script of the shell, which sees mounts and processes of its own. They are gone when it ends, however it does:
the kernel ends such namespaces with their first process, which ends with unshare, as that does with this program. The
shell is that first process, and reaps orphans: each script ends with `exit`, or the shell would become its last
command."""


def may_confine() -> bool:
    """Only root may, and not in each container."""
    with contextlib.suppress(FileNotFoundError):
        command = [*CONFINED, "mount -t proc proc /proc; exit"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    return False


async def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[str] | None = None,
    *,
    ask: bool = False,
) -> tuple[int, str]:
    """The exit code, and what it says if it is asked. It is over afterwards, also if this is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if ask else log,
        stderr=log,
        env=environment,
        cwd="/" if log else None,
        start_new_session=True,  # a ^C is for this program alone, which ends the command then
    )
    try:
        words, _ = await process.communicate()
        return process.returncode or 0, (words or b"").decode()
    finally:
        if process.returncode is None:
            await end(process, at_once=log is not None or command[0] == CONFINED[0])


async def end(process: asyncio.subprocess.Process, *, at_once: bool) -> None:
    """pytest is asked first if it is not confined, so that it ends the servers of its tests."""
    if not at_once:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@dataclass
class SetUp:
    """That of one version, in a folder of its own."""

    version: str
    home: Path
    log: IO[str]

    async def step(
        self,
        words: Sequence[str],
        enter: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        ask: bool = False,
    ) -> str:
        """What the command says, if it is asked. Raises NotHadError."""
        what = " ".join(words).replace(f"{ROOT}/", "")
        print(f"$ {what}", file=self.log, flush=True)
        try:
            code, said = await run([*enter, *words], environment, self.log, ask=ask)
        except OSError as error:
            raise NotHadError(f"{words[0]}: {error.strerror}") from None
        if code:
            raise NotHadError(f"`{what[:90]}` failed: {self.last_line()}")
        return said

    async def asked(self, *command: str) -> str:
        return await self.step(command, ask=True)

    def last_line(self) -> str:
        return Path(self.log.name).read_text(errors="replace").strip().splitlines()[-1]


# ---- where they are ------------------------------------------------------------------------------------------------


async def find(here: SetUp, *, confined: bool) -> Python:
    """Raises NotHadError."""
    reasons = []
    for search in (in_pyenv, on_path):
        try:
            source, path = await search(here)
            enter = (*CONFINED, 'mount -t proc proc /proc; "$@"; exit', "sh") if confined else ()
            return Python(source, str(path), here.home, here.home, enter)
        except NotHadError as error:
            reasons.append(str(error))
    try:
        return await in_debian(here, confined=confined)
    except NotHadError as error:
        raise NotHadError("; ".join([*reasons, str(error)])) from None


async def in_pyenv(here: SetUp) -> tuple[str, Path]:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    newest_first = sorted(versions.glob(f"{here.version}.*"), key=lambda path: _numbers(path.name), reverse=True)
    for path in newest_first:
        if await is_usable(here, path / "bin/python"):
            return f"pyenv, {path.name}", path / "bin/python"
    raise NotHadError(f"pyenv has no {here.version}")


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


async def on_path(here: SetUp) -> tuple[str, Path]:
    for folder in os.get_exec_path():
        path = Path(folder, f"python{here.version}")
        if await is_usable(here, path):
            return str(path), path
    raise NotHadError(f"PATH has no python{here.version} that can make an environment")


async def is_usable(here: SetUp, path: Path) -> bool:
    """It runs, which pyenv's shims may not; it can make an environment; it has the lock of the interpreter."""
    with contextlib.suppress(NotHadError):
        words = (await here.asked(str(path), "-c", PROBE)).split()
        return words in ([*here.version.split("."), flag] for flag in ("0", "None"))
    return False


async def in_debian(here: SetUp, *, confined: bool) -> Python:
    """A suite of Debian's in a folder. Needs root, and a Debian whose mirror has other suites, too."""
    suite = SUITES[here.version]
    if suite is None:
        raise NotHadError("no suite of Debian's has it")
    if distribution().get("ID") != "debian":
        raise NotHadError("this is no Debian")
    if not confined:
        raise NotHadError("Debian's needs root, who may make namespaces")
    root = here.home / "debian"
    await bootstrap(here, suite, root)
    inside = Path("/tests")
    (root / "tests").mkdir()
    shutil.copy("/etc/resolv.conf", root / "etc")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    environment |= await of_pip(here, root)
    mounts = (
        'cd "$0"; mount --rbind /dev dev; mount -t proc proc proc; mount --rbind /sys sys; '
        'mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp; chroot . "$@"; exit'
    )
    executable = f"/usr/bin/python{here.version}"
    return Python(f"Debian, {suite}", executable, root / "tests", inside, (*CONFINED, mounts, str(root)), environment)


def distribution() -> dict[str, str]:
    with contextlib.suppress(OSError):  # a minimal container may not say
        return platform.freedesktop_os_release()
    return {}


async def of_pip(here: SetUp, root: Path) -> dict[str, str]:
    """What pip is told here: where packages are, and whom to trust."""
    found = {name: value for name, value in os.environ.items() if name in ("PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")}
    for name in ("PIP_CERT", "SSL_CERT_FILE"):
        path = os.environ.get(name)
        if path and os.path.isfile(path):
            found[name] = path
            copy = root / path.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    with contextlib.suppress(NotHadError):
        index = await here.asked(sys.executable, "-m", "pip", "config", "get", "global.index-url")
        found.setdefault("PIP_INDEX_URL", index.strip())
    return found


async def bootstrap(here: SetUp, suite: str, root: Path) -> None:
    """Unpack Debian's `suite` into `root`. Raises NotHadError."""
    tool, environment = await debootstrap(here)
    packages = ",".join([*PACKAGES, f"python{here.version}-venv", f"python{here.version}-dev"])
    words = ["--variant=minbase", "--force-check-gpg", f"--include={packages}", suite, str(root), await mirror(here)]
    await here.step([tool, *words], (*CONFINED, '"$@"; exit', "sh"), environment)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)


async def debootstrap(here: SetUp) -> tuple[str, dict[str, str]]:
    """The machine's own, or its package unpacked: its path, and its environment."""
    if tool := shutil.which("debootstrap"):
        return tool, dict(os.environ)
    folder = here.home / "debootstrap"
    folder.mkdir()
    download = ("sh", "-euc", 'cd "$0"; apt-get download -qq debootstrap', str(folder))
    try:
        await here.step(download)
    except NotHadError:  # the lists of packages are not there yet
        await here.step(["apt-get", "update", "-qq"])
        await here.step(download)
    (package,) = folder.glob("*.deb")
    await here.step(["dpkg-deb", "--extract", str(package), str(folder)])
    return str(folder / "usr/sbin/debootstrap"), os.environ | {"DEBOOTSTRAP_DIR": str(folder / "usr/share/debootstrap")}


async def mirror(here: SetUp) -> str:
    """That of this machine's own suite. Raises NotHadError."""
    codename = distribution().get("VERSION_CODENAME")
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    for line in (await here.asked("apt-get", "indextargets", "--format", form, "Created-By: Packages")).splitlines():
        address, *where = line.split()
        if where == [codename, "main"]:
            return address
    raise NotHadError("apt names no mirror of this machine's Debian")


# ---- the tests -----------------------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[str]:
    """Of the build, and of the tests."""
    project, extras = settings()["project"], settings()["project"]["optional-dependencies"]
    tools = [line for line in extras["test"] if line.startswith(("pytest", "hypothesis"))]
    found = [*settings()["build-system"]["requires"], *project["dependencies"], *tools]
    found += [line for extra in ("asgi", "wsgi", "embed-test") for line in extras[extra]]
    return [line for line in found if not line.startswith("pyfanout")]


def check_classifiers() -> None:
    """pyproject.toml names no version that is not tested."""
    project = settings()["project"]
    pattern = r"Programming Language :: Python :: (3\.\d+)"
    named = {found[1] for line in project["classifiers"] if (found := re.fullmatch(pattern, line))}
    if extra := named - {project["requires-python"].removeprefix(">="), *SUITES}:
        names = ", ".join(sorted(extra, key=_numbers))
        raise SystemExit(f"pyproject.toml names Pythons that no test runs with: {names}")


async def prepare(here: SetUp, *, confined: bool) -> Python:
    """A fresh copy of the tree, and an environment with all that its tests need. Raises NotHadError."""
    python = await find(here, confined=confined)
    listing = ("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in (await here.asked(*listing)).split("\0"):
        if name and (ROOT / name).is_file():
            copy = python.home / "tree" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy)
    make = (python.executable, "-m", "venv", str(python.inside / "venv"))
    install = python.of_venv("-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements())
    for words in (make, install):
        await here.step(words, python.enter, python.environment)
    return python


async def test(version: str, python: Python, arguments: Sequence[str]) -> tuple[bool, str]:
    """Whether all passed, and how many. Bytecode first: where Python may not write any (PYTHONDONTWRITEBYTECODE), each
    server that a test starts would compile every module again."""
    print(f"--- {version}: {python.source}", flush=True)
    build = (
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-build-isolation",
        "--no-deps",
        "-e",
        ".",
    )
    result = "result.xml"
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses=6", f"--junitxml={result}")
    try:
        async with asyncio.timeout(TESTS_S):
            for words in (build, ("-m", "compileall", "-q", "pyfanout", "tests"), (*pytest, *TESTS, *arguments)):
                code, _ = await run([*python.enter, *python.of_venv(*words)], python.environment)
                if code and words[1] != "pytest":
                    return False, f"`{' '.join(words)}` ended with {code}"
    except TimeoutError:
        return False, f"more than {TESTS_S:.0f} s (PYTHONS_TESTS_S)"
    try:
        (suite,) = ElementTree.parse(python.home / "tree" / result).getroot()
    except FileNotFoundError:
        return False, f"pytest ended with {code}"
    return code == 0, ", ".join(f"{suite.get(name)} {name}" for name in ("tests", "failures", "errors", "skipped"))


@dataclass
class Result:
    version: str
    words: str
    good: bool = True
    python: Python | None = None


async def set_up(version: str, *, confined: bool) -> Result:
    begin_s = time.monotonic()
    home = WORK / version
    home.mkdir()
    with open(WORK / f"{version}.log", "w") as log:
        here = SetUp(version, home, log)
        try:
            async with asyncio.timeout(SETUP_S):
                python = await prepare(here, confined=confined)
        except NotHadError as error:
            return Result(version, f"not run: {error}")
        except TimeoutError:
            words = f"the set-up takes more than {SETUP_S:.0f} s (PYTHONS_SETUP_S), now at: {here.last_line()}"
            return Result(version, f"not run: {words}")
    return Result(version, f"set-up {time.monotonic() - begin_s:.0f} s", python=python)


async def all_of(arguments: Sequence[str]) -> list[Result]:
    confined = may_confine()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(set_up(version, confined=confined)) for version in SUITES]
    results = [task.result() for task in tasks]
    for result in results:  # now that nothing else runs: tests have deadlines
        if python := result.python:
            begin_s = time.monotonic()
            result.good, words = await test(result.version, python, arguments)
            took = f"tests {time.monotonic() - begin_s:.0f} s, {result.words}"
            result.words = f"{python.source} | {'passed' if result.good else 'FAILED'}: {words} ({took})"
    return results


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """.pythons, for one run at a time, and gone afterwards."""
    WORK.mkdir(exist_ok=True)
    lock = os.open(WORK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run uses {WORK}") from None
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if found := [mount for mount in mounts if mount.startswith(f"{WORK}/")]:  # by hand
        raise SystemExit(f"unmount first, or what is mounted would be removed: {', '.join(found)}")
    for path in WORK.iterdir():  # of a run that was killed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        yield
    finally:
        shutil.rmtree(WORK)
        os.close(lock)


async def main(arguments: Sequence[str]) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            task.cancel()
        stopped = True

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as by nohup
            loop.add_signal_handler(signum, stop)
    try:
        with folder():
            results = await all_of(arguments)
    except asyncio.CancelledError:
        return 1
    print("\nThe tests with newer Pythons:", *(f"{result.version} | {result.words}" for result in results), sep="\n")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    check_classifiers()
    sys.exit(asyncio.run(main(sys.argv[1:])))
