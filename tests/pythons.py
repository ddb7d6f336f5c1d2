"""The tests with newer Pythons than the oldest that is supported: `make pythons`. Arguments go to pytest.

Each Python is looked for among the versions of pyenv, then on PATH, then in Debian: a suite is unpacked into a folder
and entered by chroot(8). The machine's own packages stay as they are. A Python that cannot be had is named, and fails
nothing; one whose tests fail does. All that is made is in .pythons, and is used again.
"""

from __future__ import annotations

import contextlib
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

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pythons"

SUITES = {"3.12": None, "3.13": "trixie", "3.14": "sid"}
"""The versions, and Debian's suites that have them."""

PACKAGES = ("gcc", "libc6-dev", "procps", "util-linux")
"""What the tests need of Debian besides Python. util-linux: `unshare`."""

SETUP_S = int(os.environ.get("PYTHONS_SETUP_S", "240"))
"""Seconds for the set-up of one version. Debian's takes 60 to 80 on an idle machine. One that takes longer, on a slow
network, counts as not to be had: what CI may take has a limit, too."""

TESTS_S = 900
"""Seconds for the tests of one version."""

SEARCHES = [*(f"core/test_{name}.py" for name in ("model", "random", "sweep", "threads")), "unit/test_every_life.py"]
"""Tests that try every order of events, or each call that may fail: they take long, and search for faults of the core
and of the master, which are the same under each Python. Fuzzing needs a tool that newer Pythons do not have yet."""

LIVES = ("boot_failure", "exits", "forks", "health", "own_loop", "reload", "shutdown", "signals", "worker_life")
"""The lives of workers: how they start, serve, fork, hang, are replaced and leave."""

TESTS = [
    *("tests/unit", "tests/core", *(f"tests/system/test_{name}.py" for name in LIVES)),
    *(f"--ignore=tests/{name}" for name in (*SEARCHES, "unit/test_fuzz.py")),
]

PROBE = (
    "import ensurepip, sys, sysconfig, venv; print(*sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED'))"
)


class NotHadError(Exception):
    """Why a Python cannot be had here."""


@dataclass(frozen=True)
class Python:
    """One that can be run. `home` is a folder for its environment and a copy of the tree, and `inside` is what that is
    called where `enter` leads to."""

    source: str
    executable: str
    home: Path
    inside: Path
    enter: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    begin_s: float = field(default_factory=time.monotonic)
    """Of its set-up, by `time.monotonic`."""

    def run(self, command: Sequence[str], limit_s: float, folder: Path | None = None) -> tuple[int, str]:
        """The exit code and the output, which is shown, too."""
        words = [*self.enter, "env", f"--chdir={folder or '/'}", *command]
        return run(words, limit_s, self.environment)


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code and the output, which is shown, too. After `limit_s` the command is ended: TimeoutError."""
    lines = []
    with running(command, environment) as process:
        assert process.stdout is not None
        signal.alarm(int(limit_s))
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
            return process.wait(), "".join(lines)
        finally:
            signal.alarm(0)


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[subprocess.Popen[str]]:
    """It is over afterwards, whatever happens: asked first, so that a run of tests ends its servers."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def time_is_up(_signum: int, _frame: object) -> None:
    raise TimeoutError


def set_up(python: Python, command: Sequence[str]) -> None:
    """A step. Raises NotHadError."""
    what = " ".join(command).replace(f"{ROOT}/", "")[:90]
    left_s = python.begin_s + SETUP_S - time.monotonic()
    try:
        code, output = python.run(command, max(left_s, 1))
    except TimeoutError:
        raise NotHadError(f"the set-up takes more than {SETUP_S} s (PYTHONS_SETUP_S), now at `{what}`") from None
    if code:
        raise NotHadError(f"`{what}` failed: {last_line(output)}")


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no output"])[-1]


def output_of(*command: str) -> str:
    """Raises NotHadError."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout
    except FileNotFoundError:
        raise NotHadError(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise NotHadError(f"`{' '.join(command)}` failed: {last_line(error.stderr)}") from None


# ---- where they are ------------------------------------------------------------------------------------------------


def find(version: str) -> Python:
    """Raises NotHadError."""
    reasons = []
    for search in (in_pyenv, on_path, in_debian):
        try:
            return search(version)
        except NotHadError as error:
            reasons.append(str(error))
    raise NotHadError("; ".join(reasons))


def in_pyenv(version: str) -> Python:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    newest_first = sorted(versions.glob(f"{version}.*"), key=lambda path: _numbers(path.name), reverse=True)
    for path in newest_first:
        if is_usable(path / "bin/python", version):
            return of_machine(f"pyenv, {path.name}", path / "bin/python", version)
    raise NotHadError(f"pyenv has no {version}")


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def on_path(version: str) -> Python:
    for folder in os.get_exec_path():
        path = Path(folder, f"python{version}")
        if is_usable(path, version):
            return of_machine(str(path), path, version)
    raise NotHadError(f"PATH has no python{version} that can make an environment")


def is_usable(path: Path, version: str) -> bool:
    """It runs, which pyenv's shims may not; it can make an environment; it has the lock of the interpreter."""
    with contextlib.suppress(NotHadError, PermissionError):
        return output_of(str(path), "-c", PROBE).split() in ([*version.split("."), flag] for flag in ("0", "None"))
    return False


def of_machine(source: str, path: Path, version: str) -> Python:
    home = CACHE / version
    return Python(source, str(path), home, home)


def in_debian(version: str) -> Python:
    """A suite of Debian's in a folder. Needs root, and a Debian whose mirror has other suites, too."""
    suite = SUITES[version]
    if suite is None:
        raise NotHadError("no suite of Debian's has it")
    if platform.freedesktop_os_release().get("ID") != "debian":
        raise NotHadError("this is no Debian")
    if os.geteuid():
        raise NotHadError("Debian's needs root")
    begin_s, root = time.monotonic(), CACHE / f"debian-{suite}"
    done = root / "bootstrapped"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        bootstrap(suite, root, (*PACKAGES, f"python{version}-venv", f"python{version}-dev"))
        done.touch()
    inside = Path("/tests")
    (root / "tests").mkdir(exist_ok=True)
    shutil.copy("/etc/resolv.conf", root / "etc")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **of_pip(root)}
    executable = f"/usr/bin/python{version}"
    return Python(f"Debian, {suite}", executable, root / "tests", inside, entering(root), environment, begin_s)


def of_pip(root: Path) -> dict[str, str]:
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
        found.setdefault(
            "PIP_INDEX_URL", output_of(sys.executable, "-m", "pip", "config", "get", "global.index-url").strip()
        )
    return found


def entering(root: Path) -> list[str]:
    """Run a command with `root` as its root. All mounts, and all processes, are gone when it ends, however it does: the
    kernel ends namespaces with their first process."""
    mounts = (
        'cd "$0"; mount --rbind /dev dev; mount -t proc proc proc; mount --rbind /sys sys; '
        'mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp; chroot . "$@"; exit'  # the shell reaps orphans
    )
    return [*NAMESPACES, "sh", "-euc", mounts, str(root)]


NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]


def bootstrap(suite: str, root: Path, packages: Sequence[str]) -> None:
    """Unpack Debian's `suite` into `root`. Raises NotHadError."""
    tool, environment = debootstrap()
    command = [*NAMESPACES, tool, "--variant=minbase", "--force-check-gpg", f"--include={','.join(packages)}"]
    here = Python(suite, "", root, root, environment=environment)
    set_up(here, [*command, suite, str(root), mirror()])
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)


def debootstrap() -> tuple[str, dict[str, str]]:
    """The machine's own, or its package unpacked: its path, and its environment."""
    if tool := shutil.which("debootstrap"):
        return tool, dict(os.environ)
    folder = CACHE / "debootstrap"
    if not (folder / "usr/sbin/debootstrap").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        download = ("sh", "-euc", 'cd "$0"; apt-get download -qq debootstrap', str(folder))
        try:
            output_of(*download)
        except NotHadError:  # the lists of packages are not there yet
            output_of("apt-get", "update", "-qq")
            output_of(*download)
        (package,) = folder.glob("*.deb")
        output_of("dpkg-deb", "--extract", str(package), str(folder))
    return str(folder / "usr/sbin/debootstrap"), os.environ | {"DEBOOTSTRAP_DIR": str(folder / "usr/share/debootstrap")}


def mirror() -> str:
    """That of this machine's own suite. Raises NotHadError."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME")
    targets = output_of(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"
    )
    for line in targets.splitlines():
        address, *where = line.split()
        if where == [codename, "main"]:
            return address
    raise NotHadError("apt names no mirror of this machine's Debian")


# ---- the tests -----------------------------------------------------------------------------------------------------


def lay_out(python: Python) -> None:
    """A fresh copy of the tree, and an environment in which it is installed. Raises NotHadError."""
    tree = python.home / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    set_up(python, [python.executable, "-m", "venv", str(python.inside / "venv")])
    pip = (str(python.inside / "venv/bin/python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    set_up(python, [*pip, "--editable", f"{python.inside / 'tree'}[embed-test]", "pytest>=8", "hypothesis>=6"])


def test(python: Python, arguments: Sequence[str]) -> tuple[bool, str]:
    """Whether all passed; pytest's last line, or what else there is to say."""
    command = [str(python.inside / "venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "3"]
    try:
        code, output = python.run([*command, *TESTS, *arguments], TESTS_S, python.inside / "tree")
    except TimeoutError:
        return False, f"the tests took more than {TESTS_S} s"
    return code == 0, last_line(output)


def classified() -> set[str]:
    """The versions that pyproject.toml names."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return {
        found[1] for line in classifiers if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    }


def main() -> None:
    signal.signal(signal.SIGALRM, time_is_up)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what has been begun is ended
    if extra := classified() - {"3.11", *SUITES}:  # that of the other tests
        raise SystemExit(f"pyproject.toml names Pythons that no test runs with: {', '.join(sorted(extra))}")
    rows, good = [], True
    for version in SUITES:
        begin_s = time.monotonic()
        try:
            python = find(version)
            print(f"--- {version}: {python.source}", flush=True)
            lay_out(python)
        except NotHadError as error:
            rows.append((version, "-", f"NOT HAD: {error}"))
            continue
        set_up_s = time.monotonic() - begin_s
        passed, words = test(python, sys.argv[1:])
        good &= passed
        rows.append((version, python.source, f"{'passed' if passed else 'FAILED'}: {words} (set-up {set_up_s:.0f} s)"))
    print("\nversion | where from | result")
    for row in rows:
        print(" | ".join(row))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
