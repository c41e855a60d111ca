"""Runs one sample on the inputs it is sent, and says what it returned. Everything here is in the sample's hands.

stdin, one JSON object: {"program": text, "entry_point": name, "memory_bytes": int}.
The channel (its descriptor is the argument); messages to here are written with marshal, those from here are JSON:

    from here   {"ready": true}                                 the sandbox works; the program has not begun
    from here   {}, or {"raised": "NameError: …"}               it was defined, or not
    to here     ("call", arguments, seconds)                    one input, and its time limit
    from here   {"digest": "…"}                                 of what it returned, see values.digest; null: there is none
                {"raised": "ValueError: …"}, {"late": true}     or why it did not return
    to here     ("value",)                                      the digest was not the expected one
    from here   what was returned last, see values.py; or {"too_large": true}
"""

import importlib
import json
import marshal
import os
import re
import resource
import socket
import sys
from typing import Any

from xft_core.benchmarks.evalplus.contained import channel, values
from xft_core.benchmarks.evalplus.contained.evalplus_files import evalplus_module

MESSAGE_CHARACTERS = 300
MAX_INPUT_BYTES = 2**31


def main() -> None:
    """Serve one judge until it hangs up."""
    judge = socket.socket(fileno=int(sys.argv[1]))
    job = json.load(sys.stdin)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    guard = evalplus_module("eval/utils.py")
    if wants_numpy(job["program"]):
        # evalplus has imported it before its guard takes away open(), which it needs; here it would be time lost for most.
        importlib.import_module("numpy")
    # evalplus lets the stack grow as far as the memory limit; only here, since threads take their size from it at start.
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = job["memory_bytes"] if hard == resource.RLIM_INFINITY else min(job["memory_bytes"], hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
    guard.reliability_guard()
    answer(judge, {"ready": True})
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
    returned = None
    while True:
        what, *rest = marshal.loads(channel.receive(judge, MAX_INPUT_BYTES))
        if what == "value":
            send_value(judge, returned)
            continue
        returned = None
        arguments, seconds = rest
        try:
            with guard.time_limit(seconds), guard.swallow_io():
                returned = function(*arguments)
        except guard.TimeoutException:
            answer(judge, {"late": True})
        except BaseException as error:
            answer(judge, {"raised": described(error)})
        else:
            answer(judge, {"digest": values.digest(returned)[0]})


def wants_numpy(program: str) -> bool:
    """Whether a program may need numpy: it imports something that is not in the standard library."""
    imported = re.findall(r"(?:^|;|\n)\s*(?:import|from)\s+(\w+)", program)
    return "numpy" in program or not set(imported) <= sys.stdlib_module_names


def send_value(judge: socket.socket, value: Any) -> None:
    """What was returned, if it can be sent."""
    try:
        channel.send(judge, values.encode(value))
    except values.TooLarge:
        answer(judge, {"too_large": True})


def answer(judge: socket.socket, content: dict[str, Any]) -> None:
    """One JSON message."""
    channel.send(judge, json.dumps(content).encode())


def described(error: BaseException) -> str:
    """An exception in one line."""
    try:
        return f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    except BaseException:  # of a program's own class, that cannot be shown
        return type(error).__name__[:MESSAGE_CHARACTERS]
