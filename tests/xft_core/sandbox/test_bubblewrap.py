import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import SandboxError
from xft_core.sandbox.bubblewrap import (
    OUTPUT_BYTES,
    Finished,
    PythonProgram,
    Resources,
    Sandbox,
    SandboxMode,
    open_sandbox,
    python,
)

EXPLORE = """
import json, os, socket, subprocess, sys
job = json.load(sys.stdin)
def works(action):
    try:
        action()
        return True
    except Exception:
        return False
def fill(path):
    with open(path, "wb") as stream:
        for _ in range(2048):
            stream.write(b"x" * 2**20)
print(json.dumps({
    "secret": "XFT_TEST_SECRET" in os.environ,
    "environment": sorted(os.environ),
    "network": works(lambda: socket.create_connection(("127.0.0.1", job["port"]), timeout=2)),
    "reads_outside": works(lambda: open(job["file"]).read()),
    "writes_outside": works(lambda: open(job["file"], "w")),
    "writes_system": works(lambda: open("/usr/xft_test", "w")) or works(lambda: open("/xft_test", "w")),
    "writes_python": works(lambda: open(os.path.join(sys.prefix, "xft_test"), "w")),
    "writes_temporary": works(lambda: open("/tmp/own", "w").write("x")),
    "fills_temporary": works(lambda: fill("/tmp/full")),
    "sees_runner": os.path.exists("/proc/%d/cmdline" % job["pid"]) and job["pid"] > 50,
    "kills_runner": works(lambda: os.kill(job["pid"], 0)) and job["pid"] > 50,
    "user": os.getuid(),
    "new_namespace": subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode == 0,
}))
"""


def run(sandbox: Sandbox, program: str, stdin: Any = None, seconds: float = 30) -> tuple[int | None, bytes]:
    done = sandbox.run([str(python()), "-P", "-s", "-B", "-c", program], seconds, stdin=json.dumps(stdin).encode())
    return done.status, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bubblewrap() -> Sandbox:
    try:
        return open_sandbox("bubblewrap")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def test_a_program_is_contained(bubblewrap: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_TEST_SECRET", "token")
    outside = tmp_path / "file"
    outside.write_text("private")
    outside.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        job = {"port": server.getsockname()[1], "file": str(outside), "pid": os.getpid()}
        # The same program succeeds without a sandbox, so the results asserted below are due to the sandbox.
        free = json.loads(run(Sandbox("unsafe"), EXPLORE.replace("fill(path):", "fill(path):\n    return"), job)[1])
        status, output = run(bubblewrap, EXPLORE, job)
    assert free["network"] and free["reads_outside"] and free["kills_runner"] and not free["secret"]
    outside.write_text("private")
    assert status == 0, output
    found = json.loads(output)
    assert found["writes_temporary"] and not found["secret"]
    assert set(found["environment"]) <= {
        "PATH", "HOME", "TMPDIR", "LANG", "PWD", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS", "LC_CTYPE"}
    for forbidden in ("network", "reads_outside", "writes_outside", "writes_system", "writes_python", "fills_temporary",
                      "sees_runner", "kills_runner", "new_namespace"):
        assert not found[forbidden], forbidden
    assert outside.read_text() == "private"
    if os.geteuid() == 0:
        assert found["user"] != 0


def test_the_number_of_processes_can_be_limited(bubblewrap: Sandbox) -> None:
    bomb = """
import os, resource, time
resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))
started = 0
try:
    for _ in range(60):
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        started += 1
except OSError:
    pass
print(started)
"""
    started = time.monotonic()
    status, output = run(bubblewrap, bomb)
    assert status == 0 and int(output) < 20
    assert time.monotonic() - started < 10  # it did not wait for the children, which ended with it


@pytest.mark.parametrize("mode", ["bubblewrap", "unsafe"])
def test_a_command_has_its_files_and_its_status(mode: SandboxMode, request: pytest.FixtureRequest) -> None:
    sandbox = request.getfixturevalue("bubblewrap") if mode == "bubblewrap" else open_sandbox("unsafe")
    done = sandbox.run(
        ["sh", "-c", "cat source/a.txt; cat; echo $GREETING >&2; echo made > new && exit 5"], 30, stdin=b"typed ",
        files={"source/a.txt": "given "}, environment={"GREETING": "hello"})
    assert done == Finished(5, b"given typed ", b"hello\n")
    assert sandbox.run(["sh", "-c", "ls; kill -9 $$"], 30).stdout == b""  # a new directory each time
    missing = sandbox.run(["no-such-compiler"], 30)
    assert missing.status == 127 and b"no-such-compiler: No such file" in missing.stderr
    assert sandbox.run(PythonProgram("import sys; print(sys.argv[1:])", ("a", "b")), 30).stdout == b"['a', 'b']\n"


def test_what_is_mounted_is_read_only(bubblewrap: Sandbox, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "tool").write_text("its text")
    (tmp_path / "tool").chmod(0o666)
    read = ["sh", "-c", f"cat {tmp_path}/tool; echo more >> {tmp_path}/tool"]
    assert bubblewrap.run(read, 30).stdout == b""
    done = open_sandbox("bubblewrap", [tmp_path]).run(read, 30)
    assert done.stdout == b"its text" and done.status != 0
    assert (tmp_path / "tool").read_text() == "its text"
    hiding = open_sandbox("bubblewrap", [tmp_path], [tmp_path / "tool"])
    assert hiding.run(["sh", "-c", f"ls {tmp_path}; cat {tmp_path}/*"], 30).stdout == b"tool\n"


LIMITED = {
    "memory_bytes": (10**8, "len(bytearray(2 * 10**8))"),
    "file_bytes": (10**6, "open('file', 'wb').write(bytes(2 * 10**6))"),
    "open_files": (20, "[open('/dev/null') for _ in range(30)]"),
    "processes": (5, "import threading, time\n"
                     "for _ in range(10): threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"),
    "work_bytes": (10**6, "[open(f'file{n}', 'wb').write(bytes(500_000)) for n in range(4)]"),
    "resident_bytes": (10**8, "import os, time\n"
                              "for _ in range(4):\n    if os.fork() == 0: break\n"
                              "a = bytearray(os.urandom(4096) * 10**4); time.sleep(20)"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_resources_are_limited(name: str, bubblewrap: Sandbox) -> None:
    limit, program = LIMITED[name]
    free = Resources() if name != "resident_bytes" else Resources(resident_bytes=None)
    started = time.monotonic()
    done = bubblewrap.run(PythonProgram(program), 10, resources=replace(Resources(), **{name: limit}))
    assert done.status != 0 and time.monotonic() - started < 9
    assert bubblewrap.run(PythonProgram(program), 2, resources=free).status in (0, None)  # so the limit caused the failure


def test_output_is_bounded_here_too(bubblewrap: Sandbox) -> None:
    done = bubblewrap.run(PythonProgram("while True: print('x' * 10**6)"), 30)
    assert done.status != 0 and len(done.stdout) == OUTPUT_BYTES


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run unprivileged anyway")
@pytest.mark.parametrize("tests", [
    ["tests/xft_core/sandbox/test_bubblewrap.py", "-k", "contained or files or number_of_processes"],
    pytest.param(["tests/xft_core/sandbox/test_memory.py", "tests/xft_core/sandbox/test_seccomp.py"], marks=pytest.mark.slow),
    pytest.param(["tests/xft_core/benchmarks/evalplus/test_abuse.py"], marks=pytest.mark.slow)],
    ids=["walls", "memory", "abuse"])
def test_the_same_holds_unprivileged(tests: list[str]) -> None:
    """Run the tests as the user nobody."""
    if shutil.which("bwrap") is None or shutil.which("setpriv") is None:
        pytest.skip("bubblewrap or setpriv is not installed")
    root, base = Path(__file__).parents[3], Path(sys.base_prefix).resolve()
    parents = [part for path in reversed(base.parents[:-1]) for part in ("--perms", "0755", "--dir", str(path))]
    # The user nobody may not be able to read Python's directory, so a directory in place of root's home contains it.
    command = [
        "bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--bind", "/proc", "/proc", "--perms", "0755", "--tmpfs",
        "/root", *parents, "--ro-bind", str(base), str(base), "--perms", "1777", "--tmpfs", "/tmp", "--chdir", str(root),
        "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
        sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": "/tmp", "PYTHONPATH": str(root)})
    assert done.returncode == 0 and "skipped" not in done.stdout.splitlines()[-1], done.stdout + done.stderr


WITHOUT = {
    "there is a network": (
        "if '--unshare-all' in words: words.insert(words.index('--unshare-all') + 1, '--share-net')\n"
        "words = [word for word in words if word != '--unshare-net']\n"),
    "the system call filter is missing": (
        "if '--seccomp' in words: del words[words.index('--seccomp'):words.index('--seccomp') + 2]\n"),
    # A filter that allows everything: one instruction, return SECCOMP_RET_ALLOW.
    "the system call memfd_create is let through": (
        "if '--seccomp' in words:\n"
        "    fd = os.memfd_create('all', 0); os.write(fd, bytes.fromhex('060000000000ff7f')); os.lseek(fd, 0, 0)\n"
        "    words[words.index('--seccomp') + 1] = str(fd)\n"),
}


@pytest.mark.parametrize("wall", WITHOUT)
def test_a_wall_that_is_missing_is_noticed(
    wall: str, bubblewrap: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated by a bwrap that leaves one wall out."""
    real = shutil.which("bwrap")
    wrapper = tmp_path / "bwrap"
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\nwords = [{real!r} if w == sys.argv[0] else w for w in sys.argv[1:]]\n"
        f"{WITHOUT[wall]}os.execv({real!r}, ['bwrap', *words])\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=wall):
        open_sandbox("bubblewrap")


@pytest.mark.parametrize("mode", ["bubblewrap", "unsafe"])
def test_time_is_limited_and_nothing_is_left(mode: SandboxMode, request: pytest.FixtureRequest) -> None:
    sandbox = request.getfixturevalue("bubblewrap") if mode == "bubblewrap" else open_sandbox("unsafe")
    before = set(os.listdir("/proc"))
    started = time.monotonic()
    status, _ = run(sandbox, "import os, time\nos.fork()\ntime.sleep(60)", seconds=1)
    assert status is None and time.monotonic() - started < 5
    time.sleep(0.2)
    left = [pid for pid in set(os.listdir("/proc")) - before if pid.isdigit() and b"time.sleep(60)" in _command(pid)]
    assert left == []


def test_stop_ends_what_runs() -> None:
    sandbox = open_sandbox("unsafe")
    threading.Timer(0.5, sandbox.stop.set).start()
    started = time.monotonic()
    assert run(sandbox, "import time\ntime.sleep(60)", seconds=50)[0] is None
    assert time.monotonic() - started < 5


def test_no_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"apt-get install bubblewrap.*sandbox: unsafe"):
        open_sandbox("bubblewrap")


def test_bubblewrap_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=r"No permissions to create new namespace.*sandbox: unsafe"):
        open_sandbox("bubblewrap")


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_an_environment_known_by_a_link_is_found_inside(tmp_path: Path) -> None:
    (tmp_path / "environment").symlink_to(sys.prefix)
    python = tmp_path / "environment" / "bin" / Path(sys.executable).name
    program = (
        "import sys; from xft_core.sandbox.bubblewrap import open_sandbox\n"
        "assert 'environment' in sys.prefix; open_sandbox('bubblewrap')")
    result = subprocess.run([str(python), "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert result.returncode == 0, result.stderr
