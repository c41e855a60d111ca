"""Run one sample on the inputs that the judge sends, and report its return values. The sample controls everything here.

stdin, one JSON object: {"program": text, "entry_point": name, "memory_bytes": int}.
The channel (its descriptor is the argument): messages to here are written with marshal, messages from here are JSON:

    from here   {"ready": true}                                 the sandbox works; the program has not begun. The descriptor
                                                                that the judge's stopwatch.py reads is sent with it
    from here   {}, or {"raised": "NameError: …"}               the program was defined, or not
    to here     ("call", arguments, seconds, reading_seconds)   one input, its time limit, and the extra time for reading
                                                                the return value
    from here   {"digest": "…"}                                 of the return value, see values.digest; null if it has none
                {"raised": "ValueError: …"}, {"late": true}     or why it did not return, or cannot be read
    to here     ("value",)                                      the digest was not the expected one
    from here   the last return value, see values.py; or {"too_large": true}

A return value may run the sample's code when it is read (``__iter__``), and an exception when it is described
(``__str__``). Both count as the sample's time, and both happen before the answer to the call.
"""

import contextlib
import importlib
import json
import marshal
import os
import re
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from xft_core.benchmarks.evalplus.contained import channel, values
from xft_core.benchmarks.evalplus.contained.evalplus_files import evalplus_module
from xft_core.benchmarks.evalplus.contained.stopwatch import Stopwatch, open_schedstat

MESSAGE_CHARACTERS = 300
MAX_INPUT_BYTES = 2**31
RECURSION_LIMIT = 1000
IMPORT = re.compile(r"(?:^|;|:)[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.MULTILINE)


class TimeIsUp(Exception):
    """An input's time limit has passed. As in evalplus, it is an Exception, so a sample may catch it."""


def main() -> None:
    """Serve one judge until it hangs up."""
    judge = socket.socket(fileno=int(sys.argv[1]))
    job = json.load(sys.stdin)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    guard = prepare(job["program"], job["memory_bytes"])
    schedstat = open_schedstat()
    ready(judge, schedstat)
    program_globals: dict[str, Any] = {}
    try:
        with guard.swallow_io():
            exec(job["program"], program_globals)
        if job["entry_point"] not in program_globals:
            raise NameError(f"it has no {job['entry_point']!r}")
        function = program_globals[job["entry_point"]]
    except BaseException as error:
        answer(judge, {"raised": described(error)})
        return
    answer(judge, {})
    returned, encoded = None, None
    while True:
        what, *rest = marshal.loads(channel.receive(judge, MAX_INPUT_BYTES))
        if what == "value":
            channel.send(judge, encoded or written(returned))
            continue
        returned = encoded = None
        arguments, seconds, reading_seconds = rest
        try:
            with time_limit(seconds, Stopwatch(schedstat)) as extend:
                with guard.swallow_io():
                    returned, message = called(function, arguments)
                    extend(reading_seconds)
                    if message is None:
                        message, encoded = read(returned)
        except TimeIsUp:
            message = {"late": True}
        answer(judge, message)


def prepare(program: str, memory_bytes: int) -> Any:
    """Set up this process as evalplus does for samples, with evalplus's own module, which is returned."""
    guard = evalplus_module("eval/utils.py")
    # Load what evalplus has loaded before its guard, and modules that work differently, or not at all, if loaded after it:
    # modules keep what the guard removes (linecache: open; multiprocessing: os.getcwd). Loading all would waste time.
    tempfile.gettempdir()
    sys.modules["tkinter"] = None  # type: ignore[assignment]  # as the guard does; turtle would import it before
    imported = imported_modules(program)
    for name in ("linecache", *(name for name in imported if name.partition(".")[0] in sys.stdlib_module_names)):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if wants_numpy(program, imported):
        importlib.import_module("numpy")
    # evalplus lets the stack grow up to the memory limit. Set only here, since threads take their stack size from it.
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    guard.reliability_guard()
    return guard


def ready(judge: socket.socket, schedstat: int | None) -> None:
    """Report that the sandbox works."""
    socket.send_fds(judge, [b"-"], [] if schedstat is None else [schedstat])
    answer(judge, {"ready": True})


def called(function: Any, arguments: list[Any]) -> tuple[Any, dict[str, Any] | None]:
    """The function's return value and None, or None and the exception."""
    try:
        return function(*arguments), None
    except TimeIsUp:
        raise
    except BaseException as error:
        return None, {"raised": described(error)}


def read(value: Any) -> tuple[dict[str, Any], bytes | None]:
    """The digest of a value; if it has none, because it may run the sample's code, also its encoding."""
    try:
        if getrecursionlimit() < RECURSION_LIMIT:
            setrecursionlimit(RECURSION_LIMIT)
        digest = values.digest(value)[0]
        return {"digest": digest}, None if digest else written(value)
    except TimeIsUp:
        raise
    except BaseException as error:
        return {"raised": f"{described(error)} (when what it returned was read)"}, None


getrecursionlimit, setrecursionlimit = sys.getrecursionlimit, sys.setrecursionlimit


def written(value: Any) -> bytes:
    """The encoding of a value that is sent."""
    try:
        return values.encode(value)
    except values.TooLarge:
        return values.TOO_LARGE


@contextlib.contextmanager
def time_limit(seconds: float, stopwatch: Stopwatch) -> Iterator[Callable[[float], None]]:
    """Raise TimeIsUp in the body once the stopwatch is past ``seconds``. Yields a function that extends them.

    As in evalplus it is an alarm, which a sample may take over; the judge gives up on such a sample a little later.
    """
    limit = seconds

    def extend(more: float) -> None:
        nonlocal limit
        limit += more

    def check(*_: Any) -> None:
        left = limit - stopwatch.seconds()
        if left <= 0:
            raise TimeIsUp
        setitimer(signal.ITIMER_REAL, left)

    setitimer(signal.ITIMER_REAL, seconds)
    set_handler(signal.SIGALRM, check)
    try:
        yield extend
    finally:
        setitimer(signal.ITIMER_REAL, 0)


setitimer, set_handler = signal.setitimer, signal.signal


def imported_modules(program: str) -> list[str]:
    """Names of the modules that a program imports in statements, or in text that looks like one."""
    found = []
    for module, modules in IMPORT.findall(program):
        found += [module] if module else [name.split()[0] for name in modules.split(",") if name.strip()]
    return found


def wants_numpy(program: str, imported: list[str]) -> bool:
    """Whether a program may need numpy: it imports something that is not in the standard library."""
    return "numpy" in program or any(name.partition(".")[0] not in sys.stdlib_module_names for name in imported)


def answer(judge: socket.socket, content: dict[str, Any]) -> None:
    """One JSON message."""
    channel.send(judge, json.dumps(content).encode())


def described(error: BaseException) -> str:
    """An exception in one line, whatever its class does when it is described."""
    try:
        return f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    except TimeIsUp:
        raise
    except BaseException:
        try:
            return f"{type(error).__name__}, which cannot be shown"[:MESSAGE_CHARACTERS]
        except BaseException:
            return "an exception that cannot be named"
