"""A process that has slow modules imported and forks a child for each command that its owner sends: the child starts at once.

    python -P -m xft_core.runtime.fork_server PADDING MODULE ...      standard input: a Unix socket, SOCK_SEQPACKET

A message is a command line ``[PYTHON, "-P", "-m", MODULE, ARGUMENT, ...]`` as JSON, with four descriptors: the child's
standard output, its standard error, its working directory, and a pipe for reports. The child leads a session of its own
and does what the command would do in a fresh process with this one's environment. It reports ``started PID``; when it has
ended, its group is killed and the server reports ``ended STATUS`` (negative: the signal that ended it). A child whose
reports nobody can read any more is killed.

The server ends when its owner closes the socket or dies, and the kernel then sends SIGTERM to its children. It computes
nothing, so that it has neither threads nor an accelerator for a child to inherit. Where a module started one at its
import anyway, the child executes its command afresh.

PADDING is room: children write their own command line there, for whoever looks at the list of processes.
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
ARG_START, ARG_END = 47, 48  # fields of /proc/self/stat, from 0
ARROW_MALLOC = "JE_ARROW_MALLOC_CONF"
FORKED, AFRESH = b"f", b"a"


def main() -> None:
    """Import, then serve until the owner is gone. In a child: do its command."""
    keep_docstrings()
    environment = dict(os.environ)  # before libraries add to it
    control = socket.socket(fileno=os.dup(STDIN))
    _replace(STDIN, os.open(os.devnull, os.O_RDONLY))
    drop_launcher_variables()
    quiet_libraries()
    # pyarrow, which pandas imports, starts a thread otherwise.
    os.environ.setdefault(ARROW_MALLOC, "background_thread:false")
    with imports():
        for name in sys.argv[2:]:
            if _is_closed(control):
                return
            with suppress(Exception):  # whoever needs it says why it cannot be imported
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
    """Fork children as asked. Returns the command, in the child that is to do it; the server itself never returns."""
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
            if report in ready:  # nobody reads it any more
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
        # Asked after the fork: a library that knows of forks has ended its threads for it.
        os.write(tell, FORKED if len(os.listdir("/proc/self/task")) == 1 else AFRESH)
        *others, reports[pid] = descriptors
        watched.register(reports[pid], 0)
        for descriptor in (how, tell, *others):
            os.close(descriptor)


def _ended(children: Iterable[int]) -> list[int]:
    """Those that have ended; they are not reaped yet, so that their ids stay theirs."""
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
    """A child with its group, which it may not lead yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _become(command: list[str], descriptors: list[int], server: int) -> None:
    """Make this fork what a process just started for ``command`` would be."""
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
    except BrokenPipeError:  # nobody waits for it any more
        os._exit(ExitCode.MAY_PASS)
    os.close(report)


def _replace(standard: int, descriptor: int) -> None:
    os.dup2(descriptor, standard)
    os.close(descriptor)


def _show(command: list[str]) -> None:
    """Have /proc/PID/cmdline, and so ``ps``, show ``command``, as far as there is room for it."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    # The fields that follow the name are the third and so on.
    start, end = int(fields[ARG_START - 2]), int(fields[ARG_END - 2])
    text = b"\0".join(map(os.fsencode, command))[:max(0, end - start - 1)]
    if text:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def _is_accelerator_lost() -> bool:
    """Whether CUDA was looked at before the fork: a child cannot use it any more."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


if __name__ == "__main__":
    main()
