"""A process that has imported slow modules and forks a child for each command of its owner, so that the child starts fast.

    python -P -m xft_core.runtime.fork_server PADDING MODULE ...      standard input: a Unix socket, SOCK_SEQPACKET

A message is a command line ``[PYTHON, "-P", "-m", MODULE, ARGUMENT, ...]`` as JSON, with four descriptors: the child's
standard output, its standard error, its working directory, and a pipe for reports. The child leads its own session and does
what the command would do in a new process with the server's environment. It reports ``started PID``. When the child has
ended, its process group is killed and the server reports ``ended STATUS`` (negative: the signal that ended it). A child is
killed if nobody can read its reports any more.

The server ends when its owner closes the socket or dies, and the kernel then sends SIGTERM to the server's children. The
server computes nothing, so it has no threads and no accelerator that a child could inherit. If a module starts threads or
uses an accelerator on import anyway, the child executes its command in a new process image.

PADDING reserves space: children write their own command line there, for process listings.
"""

import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress

from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import (
    PARENT_DEATH_SIGNAL,
    drop_launcher_variables,
    imports,
    keep_docstrings,
    quiet_libraries,
)

STDIN, STDOUT, STDERR = 0, 1, 2
MESSAGE_BYTES = 1 << 16
ARG_START, ARG_END = 47, 48  # fields of /proc/self/stat, counted from 0
ARROW_MALLOC = "JE_ARROW_MALLOC_CONF"
FORKED, AFRESH = b"f", b"a"


def main() -> None:
    """Import, then serve until the owner ends. In a child, run its command."""
    keep_docstrings()
    environment = dict(os.environ)  # before libraries extend it
    control = socket.socket(fileno=os.dup(STDIN))
    _replace(STDIN, os.open(os.devnull, os.O_RDONLY))
    drop_launcher_variables()
    quiet_libraries()
    # Otherwise pyarrow, which pandas imports, starts a thread.
    os.environ.setdefault(ARROW_MALLOC, "background_thread:false")
    with imports():
        for name in sys.argv[2:]:
            if _is_closed(control):
                return
            with suppress(Exception):  # the command that needs the module reports the error
                importlib.import_module(name)
    if ARROW_MALLOC not in environment:
        del os.environ[ARROW_MALLOC]
    command = _serve(control, environment)
    sys.argv = ["-m", *command[4:]]
    sys.orig_argv = command
    runpy.run_module(command[3], run_name="__main__", alter_sys=True)


def _is_closed(control: socket.socket) -> bool:
    try:
        return control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _serve(control: socket.socket, environment: dict[str, str]) -> list[str]:
    """Fork children on request. In a child, returns its command; in the server, never returns."""
    reports: dict[int, int] = {}  # descriptors, by the child's id
    watched = select.poll()
    ended, wake = os.pipe()
    for descriptor in (ended, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    watched.register(control, select.POLLIN)
    watched.register(ended, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in watched.poll()}
        for pid, report in reports.items():
            if report in ready:  # nobody reads the reports any more
                watched.unregister(report)
                _kill(pid)
        if ended in ready:
            os.read(ended, MESSAGE_BYTES)
            for pid in _ended(reports):
                _report_end(pid, reports.pop(pid), watched)
        if control.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        server, (how, tell) = os.getpid(), os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (ended, wake, tell, *reports.values()):
                os.close(descriptor)
            control.close()
            command = json.loads(message)
            _become(command, descriptors, server)
            if os.read(how, 1) != FORKED or _is_accelerator_lost():
                os.execve(command[0], command, environment)
            os.close(how)
            return command  # type: ignore[no-any-return]
        # Checked after the fork, because a fork-aware library ends its threads before it.
        os.write(tell, FORKED if len(os.listdir("/proc/self/task")) == 1 else AFRESH)
        *others, reports[pid] = descriptors
        watched.register(reports[pid], 0)
        for descriptor in (how, tell, *others):
            os.close(descriptor)


def _ended(children: Iterable[int]) -> list[int]:
    """The children that have ended. They are not reaped yet, so that their ids are not reused."""
    return [pid for pid in children if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]


def _report_end(pid: int, report: int, watched: select.poll) -> None:
    _kill(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(KeyError):
        watched.unregister(report)
    with suppress(BrokenPipeError):
        os.write(report, b"ended %d\n" % status)
    os.close(report)


def _kill(pid: int) -> None:
    """Kill a child and its process group, which may not exist yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _become(command: list[str], descriptors: list[int], server: int) -> None:
    """Make this fork equivalent to a new process started for ``command``."""
    os.setsid()
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != server:
        os._exit(ExitCode.MAY_PASS)
    stdout, stderr, directory, report = descriptors
    _replace(STDOUT, stdout)
    _replace(STDERR, stderr)
    os.fchdir(directory)
    os.close(directory)
    _show(command)
    try:
        os.write(report, b"started %d\n" % os.getpid())
    except BrokenPipeError:  # nobody waits for this child any more
        os._exit(ExitCode.MAY_PASS)
    os.close(report)


def _replace(standard: int, descriptor: int) -> None:
    os.dup2(descriptor, standard)
    os.close(descriptor)


def _show(command: list[str]) -> None:
    """Make /proc/PID/cmdline, and so ``ps``, show ``command``, as far as the space allows."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    # The first field after the name is field 3, counted from 1.
    start, end = int(fields[ARG_START - 2]), int(fields[ARG_END - 2])
    text = b"\0".join(map(os.fsencode, command))[:max(0, end - start - 1)]
    if text:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def _is_accelerator_lost() -> bool:
    """Whether CUDA was initialized before the fork, so that a child cannot use it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


if __name__ == "__main__":
    main()
