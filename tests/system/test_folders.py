"""The folders that options name: a link that a deploy switches is looked up anew, and all else is as seen from the
start, wherever the application goes."""

from __future__ import annotations

import functools
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, ask, connect

MakeServer = Callable[..., Server]

APP = """
import json, os, sys
import pyfanout
{extra}
def handler(conn, addr):
    line = conn.recv(4096)
    if b"later" in line:
        import later
        from pack import late
        release = later.RELEASE, late.RELEASE
    else:
        release = {release!r}
    found = [release, __file__, os.getcwd(), pyfanout.current_worker().slot, os.getpid()]
    conn.sendall(json.dumps(found).encode())
"""


class Deployed:
    """Releases beside each other, and a link to the one that is current."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "current"

    def release(self, number: int, where: str = ".", extra: str = "") -> Path:
        """Another one, to which nothing leads yet."""
        folder = self.folder / "releases" / str(number)
        (folder / where / "pack").mkdir(parents=True)
        (folder / where / "app.py").write_text(APP.format(release=number, extra=extra))
        for name in ("later.py", "pack/__init__.py", "pack/late.py"):
            (folder / where / name).write_text(f"RELEASE = {number}\n")
        return folder

    def switch(self, number: int) -> None:
        """As Capistrano does."""
        fresh = self.folder / "fresh"
        fresh.symlink_to(f"releases/{number}")
        fresh.rename(self.current)


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    one = Deployed(tmp_path)
    one.release(1)
    one.switch(1)
    return one


def reload(one: Server, count: int) -> None:
    one.send(signal.SIGHUP)
    one.wait_log(r"the last worker that was replaced has exited", count)


@pytest.mark.parametrize("way", ["PWD", "chdir", "relative chdir", "app_dir", "PYTHONPATH"])
def test_a_link_that_is_switched_is_looked_up_anew(server: MakeServer, deployed: Deployed, way: str) -> None:
    """By whatever name it was typed. A worker imports what it needs later from the release that it has begun with."""
    start = functools.partial(server().start, "app:handler", workers=2, min_uptime=0.1)
    inside = {"PWD": str(deployed.current)}
    match way:
        case "PWD":
            one = start(cwd=deployed.current, environ=inside)
        case "chdir":
            one = start(chdir=deployed.current)
        case "relative chdir":
            one = start(cwd=deployed.folder, chdir="current")
        case "app_dir":
            one = start(cwd=deployed.folder, app_dir="current")
        case "PYTHONPATH":
            deployed.release(3, "src")
            deployed.switch(3)
            path = os.pathsep.join(["src", str(Path(__file__).parent.parent)])
            one = start(cwd=deployed.current, environ={**inside, "PYTHONPATH": path})
    first = 3 if way == "PYTHONPATH" else 1
    where = "src" if way == "PYTHONPATH" else "."

    def serves(number: int, request: str = "") -> None:
        release, file, folder, *_ = ask(one.address, request)
        here = deployed.folder / "releases" / str(number)
        assert release == ([number, number] if request else number)
        assert file == str(here / where / "app.py")
        assert folder == str(deployed.folder if way == "app_dir" else here)

    serves(first)
    deployed.release(4, where)
    deployed.switch(4)
    serves(first)
    serves(first, "later")
    reload(one, 1)
    serves(4)
    serves(4, "later")


@pytest.mark.parametrize("option", ["chdir", "app_dir"])
def test_a_link_that_leads_nowhere(server: MakeServer, deployed: Deployed, option: str) -> None:
    """A reload changes nothing; a worker that dies is replaced as soon as the link leads somewhere again."""
    one = server().start("app:handler", workers=2, min_uptime=0.1, **{option: deployed.current})
    one.expect("ERROR")
    deployed.current.unlink()
    one.send(signal.SIGHUP)
    (line,) = one.wait_log(r"reload aborted, 0 of 2 workers are new, the rest not replaced: the folder")
    assert str(deployed.current) in line
    assert "Traceback" not in one.log
    release, *_, pid = ask(one.address)
    assert release == 1
    os.kill(pid, signal.SIGKILL)
    one.wait_log(r"could not start: the folder", 2)
    assert ask(one.address)[0] == 1
    deployed.release(2)
    deployed.switch(2)
    one.wait_until(lambda: {ask(one.address)[0] for _ in range(4)} == {1, 2}, "the replacement serves")


def test_a_folder_that_is_replaced_is_looked_up_anew(server: MakeServer, deployed: Deployed) -> None:
    """`mv app old && mv new app`: no link is there, the start's folder has another name now."""
    folder = deployed.folder / "releases" / "1"
    one = server().start("app:handler", cwd=folder, workers=1, min_uptime=0.1, environ={"PWD": str(folder)})
    assert ask(one.address)[0] == 1
    fresh = deployed.release(2)
    folder.rename(deployed.folder / "old")
    fresh.rename(folder)
    reload(one, 1)
    assert ask(one.address)[:3] == [2, str(folder / "app.py"), str(folder)]


def test_a_name_that_is_not_this_folder_is_not_believed(server: MakeServer, deployed: Deployed, tmp_path: Path) -> None:
    """A service manager passes on the PWD of somebody else."""
    folder = deployed.folder / "releases" / "1"
    one = server().start("app:handler", cwd=folder, workers=1, environ={"PWD": str(tmp_path)})
    assert ask(one.address)[2] == str(folder)


def test_a_program_stays_where_it_is(server: MakeServer, tmp_path: Path) -> None:
    """`serve(handler)` with options of its own; `chdir` is for its workers, too."""
    (tmp_path / "elsewhere").mkdir()
    text = "import os, sys, pyfanout\ndef handler(conn, addr):\n    conn.sendall(repr(os.getcwd()).encode())\n"
    script = text + "pyfanout.serve(handler, workers=1, bind='127.0.0.1:0', {options})\n"
    for options, expected in [("", "/"), ("chdir=sys.argv[1] + '/elsewhere'", str(tmp_path / "elsewhere"))]:
        code = script.format(options=options).replace("def handler", "os.chdir('/')\ndef handler")
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = line.partition("listening on ")[2].split()[0]
            with connect(address) as client:
                assert client.recv(4096).decode() == repr(expected)
            process.terminate()
            process.stderr.read()
        assert process.returncode == 0


def certificate(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj"
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), f"/CN={name}", *files], check=True, capture_output=True)


def common_name(address: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(connect(address)) as client:
        shown = client.getpeercert(binary_form=True)
        client.sendall(b"x")
        while client.recv(4096):
            pass
    assert shown is not None
    openssl = ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "multiline"]
    text = subprocess.run(openssl, input=shown, check=True, capture_output=True).stdout.decode()
    return text.rpartition("= ")[2].strip()


@pytest.mark.parametrize("preload", [False, True])
def test_files_are_as_seen_from_the_start(server: MakeServer, deployed: Deployed, preload: bool) -> None:
    """The application goes elsewhere when it is imported. Certificates are read anew by each worker, through the link;
    the socket file and the pidfile are where they were asked for, and go when the server stops."""
    folder = deployed.release(7, extra="os.chdir('/')")
    certificate(folder / "tls", "seven")
    deployed.switch(7)
    one = server().start(
        "app:handler",
        cwd=deployed.current,
        environ={"PWD": str(deployed.current)},
        bind=["127.0.0.1:0", "unix:here.sock"],
        workers=2,
        min_uptime=0.1,
        certfile="tls/cert.pem",
        keyfile="tls/key.pem",
        pidfile="here.pid",
        **({"preload": True} if preload else {}),
    )
    assert common_name(one.address) == "seven"
    assert (folder / "here.sock").is_socket()
    assert (folder / "here.pid").read_text() == f"{one.pid}\n"
    certificate(deployed.release(8, extra="os.chdir('/')") / "tls", "eight")
    deployed.switch(8)
    reload(one, 1)
    assert common_name(one.address) == "eight"
    assert one.stop() == 0
    assert not (folder / "here.sock").exists()
    assert not (folder / "here.pid").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--chdir", "none"], "chdir: the folder '{folder}/none' cannot be entered: No such file or directory"),
        (["--chdir", "app.py"], "chdir: the folder '{folder}/app.py' cannot be entered: Not a directory"),
        (
            ["--chdir", "pack", "--app-dir", "none"],
            "app_dir: the folder '{folder}/pack/none' cannot be entered: No such",
        ),
    ],
)
def test_a_folder_that_is_not_there(deployed: Deployed, options: list[str], says: str) -> None:
    folder = deployed.folder / "releases" / "1"
    command = [sys.executable, "-m", "pyfanout", "run", "app:handler", "-b", "127.0.0.1:0", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pyfanout: " + says.format(folder=folder))
