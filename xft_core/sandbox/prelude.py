"""The start of every contained program: sets the limits, writes the program's files, and turns into the program.

Argument: the number of an open descriptor that holds one JSON object, {"command", "files", "limits" (fields of
bubblewrap.Resources), "directory", "die_with_parent"}. A command is a list of texts, or {"source", "arguments"} for
Python. This module is passed to Python as text and imports nothing from this package.
"""

import json
import os
import resource
import signal
import sys

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>; a copy: this program runs alone
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # Python does so at its start, and a command would inherit it
STACK_BYTES = 8 * 2**20  # what Linux gives a process unless a shell's `ulimit -s` says otherwise


def main() -> None:
    """Set up, and turn into the command. Exit with 127 if the command does not exist."""
    with os.fdopen(int(sys.argv[1]), "rb") as stream:
        job = json.load(stream)
    if job["die_with_parent"]:
        import ctypes

        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    reset_signals()
    os.umask(0o022)
    os.chdir(job["directory"])
    for name, text in job["files"].items():
        assert not os.path.isabs(name) and ".." not in name.split("/"), name
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
    limit(job["limits"])
    if isinstance(job["command"], dict):
        sys.argv[1:] = job["command"]["arguments"]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_IGN)
        exec(compile(job["command"]["source"], "<program>", "exec"), {"__name__": "__main__"})
        return
    try:
        os.execvp(job["command"][0], job["command"])
    except OSError as error:
        print(f"{job['command'][0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def reset_signals() -> None:
    """Block and ignore no signal. A verdict must not depend on the shell, scheduler or program that started the grading:
    multiprocessing, for example, ends its workers by SIGTERM, and waits forever for those that inherit it as ignored."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def limit(limits: "dict[str, int | None]") -> None:
    """Set hard limits for this process and everything it starts, and the usual size of the stack."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (at_most(STACK_BYTES, hard), hard))
    memory = limits["memory_bytes"]
    for name, value in (
        ("AS", memory), ("DATA", memory), ("FSIZE", limits["file_bytes"]), ("NOFILE", limits["open_files"]), ("CORE", 0),
    ):
        if value is not None:
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            value = at_most(value, hard)
            resource.setrlimit(number, (value, value))
    if limits["processes"] is not None:
        limit_processes(limits["processes"])


def at_most(value: int, hard: int) -> int:
    """``value``, or the hard limit if that is less. Python writes "no limit" as -1."""
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def limit_processes(processes: int) -> None:
    """Limit the number of processes. Kernels before 5.14 also count the user's processes outside the sandbox: if that
    leaves no room for even one more, the limit stays unchanged."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    processes = at_most(processes, before[1])
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, before[1]))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


main()
