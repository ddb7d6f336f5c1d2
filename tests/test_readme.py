"""Every command of README.md is run, in a copy of the tree, where nothing is installed but what README installs.

Servers run in a network namespace of their own, so that the ports of README are free.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import pytest

from bench import pictures, questions, runner, standings, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
# In a namespace without a network of the host's: as root, or as anybody where user namespaces are allowed.
NAMESPACE = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone holds."""
    target = tmp_path_factory.mktemp("readme") / "pyfanout"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def environment(clone: Path) -> dict[str, str]:
    """`pip install .` in a new environment, which the other commands then find first in PATH."""
    assert "pip install ." in SHELL
    venv = clone.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "--quiet", "."], cwd=clone, check=True)
    return {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture
def session(clone: Path, environment: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def serve_and_ask(
    session: list[subprocess.Popen[str]], folder: Path, env: dict[str, str], command: str, ask: str
) -> str:
    """Start a server, ask it until it answers, stop it with TERM; what it answered."""
    stop = "pkill -TERM -P" if command.startswith("make") else "kill -TERM"  # make's child is the server
    script = f"ip link set lo up; {command} & server=$!; trap '{stop} $server' TERM; wait $server; wait $server"
    server = subprocess.Popen(
        [*NAMESPACE, "bash", "-c", script],
        cwd=folder,
        env=env,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    session.append(server)
    enter = ["nsenter", "--net", "--target", str(server.pid)]
    enter += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    deadline = time.monotonic() + 60
    while True:
        asked = subprocess.run([*enter, "bash", "-c", ask], env=env, text=True, capture_output=True, check=False)
        if asked.returncode == 0 and asked.stdout:
            break
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < deadline, asked.stderr
        time.sleep(0.05)  # between two questions; the deadline bounds them
    server.send_signal(signal.SIGTERM)
    _, log = server.communicate(timeout=40)
    assert server.returncode == 0, log
    assert re.search("listening on|Listening at", log)
    return asked.stdout


@pytest.mark.parametrize(
    "command",
    [
        "python examples/hello.py",
        "pyfanout run hello:handler --app-dir examples --bind 127.0.0.1:8000 --workers auto",
    ],
)
def test_hello(session, clone, environment, command):
    assert command in SHELL
    assert "curl http://127.0.0.1:8000" in SHELL
    answer = serve_and_ask(session, clone, environment, command, "curl --silent http://127.0.0.1:8000")
    assert answer.startswith("Hello from worker ")


def test_echo(session, clone, environment):
    command = "pyfanout run echo:handler --app-dir examples --bind unix:/tmp/echo.sock --bind 127.0.0.1:8001"
    assert command in SHELL
    here = command.replace("/tmp/", f"{clone}/")
    ask = "exec 3<>/dev/tcp/127.0.0.1/8001 && echo over tcp >&3 && head -n 1 <&3"
    assert serve_and_ask(session, clone, environment, here, ask) == "over tcp\n"
    assert not (clone / "echo.sock").exists()


@pytest.mark.parametrize(
    ("install", "command"),
    [
        ("pip install '.[wsgi]' flask", "pyfanout run flaskapp:app --app-dir examples --workers 4"),
        ("pip install '.[asgi]' fastapi", "pyfanout run fastapiapp:app --app-dir examples --workers 4"),
        (
            "pip install gunicorn flask",
            "(cd examples && gunicorn --worker-class pyfanout.embed.gunicorn.GThread flaskapp:app)",
        ),
    ],
)
def test_applications(session, clone, environment, install, command):
    assert install in SHELL
    assert SHELL.index("pip install .") < SHELL.index(install) < SHELL.index(command)
    subprocess.run(["bash", "-c", f"{install} --quiet"], cwd=clone, env=environment, check=True)
    answer = serve_and_ask(session, clone, environment, command, "curl --silent --fail http://127.0.0.1:8000")
    assert answer.startswith('{"process":')


def test_the_folder_of_the_source_is_told_from_the_installed_package(clone, environment):
    """There Python finds the source first, whose core has not been built."""
    command = ["python", "-c", "import pyfanout"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {clone}/pyfanout is a source tree whose C core is not built")


def test_check_config_and_help(clone, environment):
    command = "pyfanout run hello:handler --app-dir examples --workers 2 --policy least-connections --check-config"
    assert command in SHELL
    printed = subprocess.check_output(command.split(), cwd=clone, env=environment, text=True)
    assert "policy = least-connections" in printed
    assert "served as = handler by pyfanout" in printed
    assert "`pyfanout run --help`" in README
    assert "--workers" in subprocess.check_output(["pyfanout", "run", "--help"], env=environment, text=True)


def test_make_run(session, clone, environment):
    """`make run` sets up its own environment, and says where it serves."""
    assert "`make run`" in README
    plain = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["make", "--silent", ".venv/run"], cwd=clone, env=plain, check=True)  # needs the registries
    answer = serve_and_ask(session, clone, plain, "make --silent run", "curl --silent http://127.0.0.1:8000")
    assert answer.startswith("Hello from worker ")


def test_make_bench_runs(clone):
    """Its full run takes a quarter of an hour; one row of it shows that the command works. What it needs is in our own
    environment, which `make test` has set up in the same way."""
    assert "`make bench`" in README
    arguments = ["--old-file=.venv/ready", f"BIN={Path(sys.executable).parent}"]
    arguments.append("BENCH_ARGS=--quick --only sequence")
    report = subprocess.check_output(["make", "--silent", "bench", *arguments], cwd=clone, text=True)
    assert "one after the other" in report


def test_no_command_is_forgotten():
    """What README has besides, and who runs it: this suite is what `make test` runs. All of them run in the clone's own
    folder, so that who types them in reading order, in one shell, is never in another one."""
    known = {
        "pip install .",
        "python examples/hello.py",
        "curl http://127.0.0.1:8000",
        "pyfanout run hello:handler --app-dir examples --bind 127.0.0.1:8000 --workers auto",
        "pyfanout run hello:handler --app-dir examples --workers 2 --policy least-connections --check-config",
        "pyfanout run echo:handler --app-dir examples --bind unix:/tmp/echo.sock --bind 127.0.0.1:8001",
        "pip install '.[wsgi]' flask",
        "pyfanout run flaskapp:app --app-dir examples --workers 4",
        "pip install '.[asgi]' fastapi",
        "pyfanout run fastapiapp:app --app-dir examples --workers 4",
        "pip install gunicorn flask",
        "(cd examples && gunicorn --worker-class pyfanout.embed.gunicorn.GThread flaskapp:app)",
    }
    assert set(SHELL) == known
    assert set(re.findall(r"`(make \w+)`", README)) == {"make run", "make test", "make bench", "make pythons"}


def test_the_code_shown_is_the_code_of_the_examples():
    hello, echo, _ = PYTHON
    example = (ROOT / "examples/hello.py").read_text()
    assert hello.removeprefix("# hello.py\n") in example
    assert echo in (ROOT / "examples/echo.py").read_text()


def test_the_master_shown_runs(clone):
    """Until it has printed its workers once; then it is told to stop."""
    assert "such as examples/master.py" in README
    code = PYTHON[2].replace("127.0.0.1:8000", "127.0.0.1:0")
    (clone / "examples/master.py").write_text(code)
    command = [sys.executable, "-u", "examples/master.py"]
    with subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        try:
            assert shown.stdout is not None
            line = shown.stdout.readline()
            while line and line.count("READY") < 4:
                line = shown.stdout.readline()
            assert line.count("READY") == 4
            shown.terminate()
            out, error = shown.communicate(timeout=20)
        finally:
            shown.kill()
    assert shown.returncode == 0, error
    assert "Traceback" not in out + error


def test_the_tests_that_are_named_exist() -> None:
    """docs/reliability.md says which test shows what; `::name` alone is of the file before it."""
    path = ""
    found = re.findall(r"`((?:[a-z]+/\w+\.py)?(?:::\w+)?)`", (ROOT / "docs/reliability.md").read_text())
    assert len(found) > 20
    for each in filter(None, found):
        file, _, name = each.partition("::")
        path = file or path
        assert not name or f"def {name}(" in (ROOT / "tests" / path).read_text(), each
        assert (ROOT / "tests" / path).exists(), each


RESULT = r"([\d.,]+)(?: \w+)?"
COMPARED = re.compile(rf"\| .+ \(`([a-z\d-]+)`\) \| (.+) \| {RESULT} \| {RESULT} \((.+)\) \| (.+) \|")
LOSSES = 5


def comparison(line: standings.Line) -> str:
    if line.better_than_ours:
        return f"{line.subject} is {table.number(1 / line.ratio)} times better"
    if line.verdict != "pyfanout is better":
        return f"the ranges {line.verdict}"
    return "pyfanout lost none" if line.ratio == math.inf else f"pyfanout is {table.number(line.ratio)} times better"


def test_the_comparison_and_the_picture_are_of_the_committed_report() -> None:
    """Which is of a full run, with everybody in it, and made of the samples beside it."""
    (folder,) = {ROOT / "bench" / "results" / name for name in re.findall(r"bench/results/([\d-]+)/", README)}
    about, found = runner.read(folder / "samples.jsonl")
    full = asdict(questions.RUNS["peers"].full)
    assert {name: full[name] for name in ("rounds", "kills", "each_s", "tail_s")}.items() <= about["scale"].items()
    assert about["absent"] == []
    assert {sample.experiment for sample in found} == {question.experiment for question in questions.PEERS}
    report, overview = (folder / "report.md").read_text(), (folder / "overview.svg").read_text()
    assert report == table.report(about, questions.PEERS, found)
    assert overview.startswith("<svg")
    assert f"{overview}\n" in pictures.page(report, overview)

    section = README.partition("\n## Benchmarks\n")[2].partition("\n## ")[0]
    for fact in (about["date"][:10], "python -m bench peers", about["machine"], about["python"], about["commit"]):
        assert fact in section
    assert about["command"].startswith("python -m bench peers ")
    _, _, *rows = re.findall(r"^\|.*", section, re.M)
    asked = {question.name: question for question in questions.PEERS}
    shown = []
    for row in rows:
        matched = COMPARED.fullmatch(row)
        assert matched, row
        name, subject, result, ours, beside, words = matched.groups()
        lines = {line.subject: line for line in standings.lines(asked[name], found)}
        line = lines[subject]
        assert [result, ours] == [table.number(median(each.values)) for each in (line, lines[beside])], row
        assert (beside, words) == (line.beside, comparison(line)), row
        shown.append((name, subject, line.better_than_ours))
    worst: dict[str, str] = {}
    for line in standings.losses(questions.PEERS, found):
        worst.setdefault(line.question.name, line.subject)
    assert shown[:LOSSES] == [(name, subject, True) for name, subject in worst.items()][:LOSSES]
    assert not any(lost for *_, lost in shown[LOSSES:])
