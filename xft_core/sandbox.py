"""A place to run programs that nobody has read: what a model wrote.

``bubblewrap``: no network; the system and this Python read-only, nothing else of the file system; small private /tmp
and /dev/shm; own process ids, users and inter-process communication; no capabilities, no further user namespaces; a
bare environment; everything in it dies with the process that started it. Started by root, it runs as nobody, since the
kernel lets root start any number of processes. ``unsafe`` is none of that: the same program as a plain child.

What it does not stop: faults of the kernel, and use of processor and memory up to the limits the program sets itself.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from xft_core.errors import SandboxError

logger = logging.getLogger(__name__)

SandboxMode = Literal["bubblewrap", "unsafe"]

# What a contained program sees of the environment, and all of it. One thread: several programs run at once, and each
# thread's stack counts against the memory limit. A fixed hash seed: the same program gets the same verdict again.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}
NOBODY = "65534"
TEMPORARY_BYTES, SHARED_MEMORY_BYTES = 256 * 2**20, 64 * 2**20
PROBE_SECONDS, SECONDS_BETWEEN_LOOKS = 30, 0.5
REMEDY = (
    "Grading runs what a model wrote, so it needs bubblewrap: 'apt-get install bubblewrap' (version 0.8 or later), on "
    "a kernel that lets you make user namespaces. On a machine that may be lost, evaluate.sandbox: unsafe grades "
    "without it.")


@dataclass(frozen=True)
class Sandbox:
    """A working way to contain programs; made by ``open_sandbox``. Once ``stop`` is set, what runs in it is ended."""

    mode: SandboxMode
    prefix: tuple[str, ...] = ()
    stop: threading.Event = field(default_factory=threading.Event, compare=False)

    def command(self, program: str) -> list[str]:
        """The command that runs Python source contained; it finds installed packages, but no other file."""
        python = [str(_python()), "-P", "-s", "-B", "-c", program]
        return python if self.mode == "unsafe" else [*self.prefix, "--", *python]

    def run(self, program: str, seconds: float, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> int | None:
        """Run Python source contained; its exit status, None if it was ended: after ``seconds``, or on ``stop``.

        The streams are files, not pipes: a flood of output then costs disk up to the program's own file size limit,
        never this process's memory. Nothing of the program is left when this returns (``unsafe``: nothing that has
        stayed in its process group).
        """
        process = subprocess.Popen(
            self.command(program), stdin=stdin, stdout=stdout, stderr=stderr, env=ENVIRONMENT, cwd="/",
            start_new_session=True)
        deadline = time.monotonic() + seconds
        try:
            while not self.stop.is_set() and time.monotonic() < deadline:
                try:
                    return process.wait(timeout=min(seconds, SECONDS_BETWEEN_LOOKS))
                except subprocess.TimeoutExpired:
                    continue
            return None
        finally:
            _end_group(process)


def open_sandbox(mode: SandboxMode, probe: str = "pass") -> Sandbox:
    """A sandbox in which ``probe``, Python source, was seen to run just now.

    Raises SandboxError, saying what to install, when there is none.
    """
    if mode == "unsafe":
        logger.warning("evaluate.sandbox is unsafe: what a model wrote gets this user's files and network")
        return Sandbox("unsafe")
    executable = shutil.which("bwrap")
    if executable is None:
        raise SandboxError(f"There is no 'bwrap' on the PATH of this machine. {REMEDY}")
    reasons = []
    for sandbox in _candidates(executable):
        reason = _probe(sandbox, probe)
        if reason is None:
            return sandbox
        reasons.append(reason)
    raise SandboxError(
        f"bubblewrap ({executable}) cannot make a sandbox here: {'; '.join(dict.fromkeys(reasons))}. {REMEDY}")


def _candidates(executable: str) -> list[Sandbox]:
    """Ways to contain a program, the tightest first."""
    isolate = (
        executable, "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL")
    private = (
        "--proc", "/proc", "--dev", "/dev",
        "--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm",
        "--perms", "1777", "--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp",
        "--remount-ro", "/", "--chdir", "/tmp")
    system = _system()
    sandboxes = []
    if os.geteuid() == 0 and shutil.which("setpriv"):
        # Root is not bound by RLIMIT_NPROC, and cannot become another user inside a user namespace that maps only root.
        # So an outer bwrap, still root, mounts what nobody could not reach (a Python under /root), and the inner one is
        # started as nobody. The outer process namespace is what ends the inner one when this process is killed.
        outer = (
            executable, *system, "--bind", "/proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-pid",
            "--die-with-parent", "--cap-drop", "ALL", *(
                part for name in ("SETUID", "SETGID", "SETPCAP") for part in ("--cap-add", f"CAP_{name}")))
        become_nobody = (
            "--", "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps=-all",
            "--bounding-set=-all")
        inner = (*isolate, "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", *private)
        sandboxes.append(Sandbox("bubblewrap", (*outer, *become_nobody, *inner)))
    sandboxes.append(Sandbox("bubblewrap", (*isolate, "--unshare-user", "--disable-userns", *system, *private)))
    sandboxes.append(Sandbox("bubblewrap", (*isolate, *system, *private)))
    return sandboxes


def _python() -> Path:
    """This interpreter below its environment's real directory, which is what is mounted: that may be known by a link."""
    return Path(sys.prefix).resolve() / Path(sys.executable).relative_to(sys.prefix)


def _system() -> tuple[str, ...]:
    """The mounts a Python program needs: /usr and what points into it, and this Python with its packages."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/bin", "/lib", "/lib64", "/sbin")):
        if path.is_symlink():
            mounts += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            mounts += ["--ro-bind", str(path), str(path)]
    for path in map(Path, ("/etc/ld.so.cache", "/etc/alternatives")):
        mounts += ["--ro-bind-try", str(path), str(path)]
    made: set[Path] = set()
    for prefix in dict.fromkeys((Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve())):
        if prefix.is_relative_to("/usr"):
            continue
        # bwrap makes missing parents for its own user alone.
        for parent in reversed(prefix.parents[:-1]):
            if parent not in made:
                made.add(parent)
                mounts += ["--perms", "0755", "--dir", str(parent)]
        mounts += ["--ro-bind", str(prefix), str(prefix)]
    return tuple(mounts)


def _probe(sandbox: Sandbox, program: str) -> str | None:
    """None if ``program`` runs in ``sandbox``, else the reason."""
    try:
        done = subprocess.run(
            sandbox.command(program), env=ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
            timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
