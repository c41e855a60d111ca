"""A sandbox for programs that a model wrote and nobody has read.

``bubblewrap``: no network; the system and this Python read-only, and no other part of the file system; a small private
/tmp and /dev/shm; separate process ids, users and inter-process communication; no capabilities, no further user
namespaces; a bare environment; system calls that no graded program needs fail (seccomp.py); everything in it dies with
the process that started it. If root starts it, it runs as nobody, because the kernel lets root start any number of
processes. ``unsafe`` has none of these walls: the same program runs as a plain child process.

Every program runs under its own resource limits and starts in an empty directory of bounded size.
The sandbox does not stop faults of the kernel, or use of processor and memory up to the limits.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Literal

from xft_core.errors import SandboxError
from xft_core.files.temporary import temporary_directory
from xft_core.sandbox.canaries import canaries
from xft_core.sandbox.memory import MemoryWatch
from xft_core.sandbox.seccomp import build_filter

logger = logging.getLogger(__name__)

SandboxMode = Literal["bubblewrap", "unsafe"]

# The complete environment of a contained program. One thread: several programs run at once, and each thread's stack
# counts against the memory limit. A fixed hash seed: the same program gets the same verdict again.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}
NOBODY, WORK = "65534", "/tmp"
WORK_BYTES, SHARED_MEMORY_BYTES, OUTPUT_BYTES = 256 * 2**20, 64 * 2**20, 2**20
SECONDS_BETWEEN_LOOKS = 0.5
PRELUDE = Path(__file__).with_name("prelude.py")
REMEDY = (
    "Grading runs code that a model wrote, so it needs bubblewrap: 'apt-get install bubblewrap' (version 0.8 or later), "
    "on a kernel that lets you create user namespaces. On a machine that you can afford to lose, evaluate.sandbox: unsafe "
    "grades without it.")


@dataclass(frozen=True)
class Resources:
    """Hard limits of one contained program; None leaves a limit unchanged.

    memory_bytes     address space of each process; None for node, java, go and mono, which reserve far more than they use
    resident_bytes   memory that all its processes together really use, and what the kernel holds for them (see
                     memory.py); read ten times a second, more often near the limit
    file_bytes       size of each file it writes, including its output
    processes        processes and threads, all together
    open_files       per process
    work_bytes       size of its directory, /tmp (``unsafe``: not enforced)
    """

    memory_bytes: int | None = 2 * 2**30
    resident_bytes: int | None = 2 * 2**30
    file_bytes: int | None = 64 * 2**20
    processes: int | None = 64
    open_files: int | None = 256
    work_bytes: int = WORK_BYTES


@dataclass(frozen=True)
class PythonProgram:
    """Python source as a command, with its arguments. It starts in half the time of a command that calls Python."""

    source: str
    arguments: tuple[str, ...] = ()


Command = Sequence[str] | PythonProgram


@dataclass(frozen=True)
class Finished:
    """How a contained program ended. ``status``: its exit status (128 + n for signal n), or None if the sandbox ended it:
    at its time limit, or on ``stop``. ``stdout``, ``stderr``: the first megabyte of each."""

    status: int | None
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Sandbox:
    """A working way to contain programs, created by ``open_sandbox``. Setting ``stop`` ends the programs that run in it.

    ``arguments``: builds the command line before the program from the size of its directory and the filter's descriptor.
    """

    mode: SandboxMode
    arguments: Callable[[int, int], list[str]] = field(default=lambda *given: [], compare=False)
    stop: threading.Event = field(default_factory=threading.Event, compare=False)

    def run(
        self, command: Command, seconds: float, *, files: Mapping[str, str] | None = None, stdin: bytes = b"",
        resources: Resources | None = None, environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a contained command in a directory that holds ``files`` (by relative path) and is deleted afterwards.

        The command can read /usr, this Python's packages and the mounts given to ``open_sandbox``, and no other file.
        A PythonProgram has the standard library on its path, but no packages.
        ``environment`` is added to ENVIRONMENT. A command that does not exist ends with status 127. Output goes to files,
        not pipes: a flood of it costs disk up to the limit, never this process's memory. Nothing of the program is left
        when this returns (``unsafe``: nothing that stayed in its process group).
        """
        with (tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written,
              tempfile.TemporaryFile() as complained):
            given.write(stdin)
            given.seek(0)
            with self.start(
                command, files=files, stdin=given, stdout=written, stderr=complained, resources=resources,
                environment=environment,
            ) as process:
                status = self.wait(process, seconds)
            for stream in (written, complained):
                stream.seek(0)
            return Finished(status, written.read(OUTPUT_BYTES), complained.read(OUTPUT_BYTES))

    @contextmanager
    def start(
        self, command: Command, *, files: Mapping[str, str] | None = None, stdin: IO[bytes] | int | None = None,
        stdout: IO[bytes] | int | None = None, stderr: IO[bytes] | int | None = None, descriptors: Sequence[int] = (),
        resources: Resources | None = None, environment: Mapping[str, str] | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command as ``run`` does, without waiting for it. Leaving the context ends it and everything it started.

        ``descriptors`` stay open in it under their own numbers; streams that are not given are empty or discarded.
        """
        resources = resources or Resources()
        with temporary_directory("unsafe") if self.mode == "unsafe" else nullcontext() as directory:
            place = str(directory or WORK)
            job = {"command": asdict(command) if isinstance(command, PythonProgram) else list(command),
                   "files": dict(files or {}), "limits": asdict(resources), "directory": place,
                   "die_with_parent": self.mode == "unsafe"}
            with _in_memory(json.dumps(job).encode()) as job_descriptor, (
                    _in_memory(build_filter()) if self.mode == "bubblewrap" else nullcontext(-1)) as filter_descriptor:
                process = subprocess.Popen(
                    [*self.arguments(resources.work_bytes, filter_descriptor), str(python()), "-I", "-S", "-B", "-c",
                     PRELUDE.read_text(encoding="utf-8"), str(job_descriptor)],
                    stdin=stdin or subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL,
                    stderr=stderr or subprocess.DEVNULL, cwd="/",
                    env=ENVIRONMENT | {"TMPDIR": place} | dict(environment or {}),
                    pass_fds=[number for number in (job_descriptor, filter_descriptor, *descriptors) if number >= 0],
                    start_new_session=True)
            watch = nullcontext() if resources.resident_bytes is None else MemoryWatch(
                process.pid, resources.resident_bytes, partial(_kill_group, process))
            try:
                with watch:
                    yield process
            finally:
                _kill_group(process)
                process.wait()

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> int | None:
        """Exit status of a started program; None if it still runs after ``seconds`` or when ``stop`` is set."""
        deadline = time.monotonic() + seconds
        while not self.stop.is_set() and time.monotonic() < deadline:
            try:
                return process.wait(timeout=max(0, min(deadline - time.monotonic(), SECONDS_BETWEEN_LOOKS)))
            except subprocess.TimeoutExpired:
                continue
        return None


def open_sandbox(mode: SandboxMode, mounts: Sequence[Path] = (), hidden: Sequence[Path] = ()) -> Sandbox:
    """Open a sandbox, after checking that it runs a program, reports one that fails, and stops one that does not end.

    ``mounts``: directories and files, besides /usr and this Python, that programs may read under their own paths.
    ``hidden``: files that programs must not read, wherever they are.
    Raises SandboxError, saying what to install, if no sandbox works.
    """
    if mode == "unsafe":
        logger.warning("evaluate.sandbox is unsafe: code that a model wrote can use this user's files and network")
        return Sandbox("unsafe")
    build_filter()
    executable = shutil.which("bwrap")
    if executable is None:
        raise SandboxError(f"There is no 'bwrap' on the PATH of this machine. {REMEDY}")
    reasons = []
    for sandbox in _candidates(executable, mounts, hidden):
        reason = _broken_canary(sandbox)
        if reason is None:
            return sandbox
        reasons.append(reason)
    raise SandboxError(
        f"bubblewrap ({executable}) cannot create a sandbox here: {'; '.join(dict.fromkeys(reasons))}. {REMEDY}")


def python() -> Path:
    """This interpreter, below the real directory of its environment: that one is mounted, not a link to it."""
    return Path(sys.prefix).resolve() / Path(sys.executable).relative_to(sys.prefix)


def _candidates(executable: str, mounts: Sequence[Path], hidden: Sequence[Path]) -> list[Sandbox]:
    """Ways to contain a program, the strictest first. Raises SandboxError if root cannot become another user."""
    paths = _readable(mounts)
    system, last = _system(paths), _bind([path for path in paths if path.is_relative_to(WORK)])
    for path in (file.resolve() for file in hidden):
        if any(path.is_relative_to(seen) for seen in (Path("/usr"), *paths)):
            last += ["--ro-bind", os.devnull, str(path)]
    alone = [executable, "--die-with-parent", "--new-session"]
    own_users = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]

    # /proc/keys names the keys of the grader's session. /dev is a separate file system, as large as half the memory.
    # A shared mapping of /dev/zero is memory that goes uncounted; /dev/full reads the same and cannot be mapped.
    hide_keys = [part for name in ("keys", "key-users") for part in ("--ro-bind", os.devnull, f"/proc/{name}")
                 if os.path.exists(f"/proc/{name}")]

    def private(work_bytes: int, filter_descriptor: int) -> list[str]:
        return ["--proc", "/proc", *hide_keys, "--dev", "/dev", "--dev-bind", "/dev/full", "/dev/zero",
                "--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
                "--perms", "1777", "--size", str(work_bytes), "--tmpfs", WORK, *last,
                "--remount-ro", "/", "--chdir", WORK, "--seccomp", str(filter_descriptor), "--"]

    if os.geteuid() != 0:
        return [Sandbox("bubblewrap", lambda *given: [*alone, *own_users, *system, *private(*given)])]
    if shutil.which("setpriv") is None:
        raise SandboxError("A sandbox that root starts needs 'setpriv' to become another user: 'apt-get install util-linux'.")
    # Root is not bound by RLIMIT_NPROC, and cannot become another user inside a user namespace that maps only root.
    # So an outer bwrap, still root, mounts what the user nobody could not reach (a Python under /root), and the inner one
    # is started as nobody. When this process is killed, the outer process namespace ends the inner one.
    capabilities = ["--cap-drop", "ALL", *(
        part for name in ("SETUID", "SETGID", "SETPCAP") for part in ("--cap-add", f"CAP_{name}"))]
    become_nobody = [
        "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    outer = [executable, "--tmpfs", WORK, *system, "--bind", "/proc", "/proc", "--dev", "/dev", "--unshare-pid",
             "--die-with-parent", *capabilities, "--", *become_nobody]
    inner = [*alone, *own_users, "--ro-bind", "/", "/"]
    # Where the kernel bars the user nobody from creating user namespaces, none can be nested either, and root needs none.
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    return [
        Sandbox("bubblewrap", lambda *given: [*outer, *inner, *private(*given)]),
        Sandbox("bubblewrap", lambda *given: [
            *alone, *spaces, *capabilities, *system, *private(*given), *become_nobody, "--no-new-privs"])]


def _readable(mounts: Sequence[Path]) -> list[Path]:
    """What programs may read besides /usr: this Python, its packages, and ``mounts``."""
    paths = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()]
    for mount in mounts:
        paths += [mount.resolve(), mount.absolute()]
    return [path for path in dict.fromkeys(paths) if not path.is_relative_to("/usr")]


def _system(paths: Sequence[Path]) -> list[str]:
    """The mounts of a sandbox's file system: /usr, the directories that point into it, and ``paths``."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/bin", "/lib", "/lib64", "/sbin")):
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--perms", "0755", "--dir", "/etc"]
    for path in map(Path, ("/etc/ld.so.cache", "/etc/alternatives")):
        arguments += ["--ro-bind-try", str(path), str(path)]
    return arguments + _bind(paths)


def _bind(paths: Sequence[Path]) -> list[str]:
    """Read-only mounts under their own paths. Everyone may enter the parents, which bwrap would create for its user alone."""
    arguments = []
    parents = dict.fromkeys(parent for path in paths for parent in reversed(path.parents[:-1]))
    for parent in parents:
        if str(parent) not in ("/etc", WORK):
            arguments += ["--perms", "0755", "--dir", str(parent)]
    for path in paths:
        arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _broken_canary(sandbox: Sandbox) -> str | None:
    """None if every canary ended as it must; otherwise what was wrong with the first one that did not."""
    for canary in canaries():
        try:
            done = sandbox.run(PythonProgram(canary.program), canary.seconds)
        except OSError as error:
            return str(error)
        if done.status != canary.status:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"{canary.name}: exit status {done.status} instead of {canary.status}"
    return None


@contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """A descriptor of a file in memory, to be read from its beginning by one process."""
    descriptor = os.memfd_create("sandbox")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
