"""The program that runs DS-1000's tests. It runs contained, in the environment for DS-1000, and imports nothing from this
package. It stays alive: the slow part, importing a library, is done once, and each sample runs in a fork.

Argument: a JSON object, {"modules": names imported before the first fork, "watched": modules whose absence is reported,
"contained": whether it owns all processes and files that it sees}.
stdin, one JSON object per line: {"code_context": text, "samples": [text, ...], "seconds": float}
stdout, one JSON object per line:
    {"missing": ["torch"]}                                   once, after the imports: the watched modules that are missing
    {"started": 0}                                           before each sample
    {"sample": 0, "status": "pass", "detail": ""}            after it: pass, fail, timeout (of processor time), waits (it
                                                             is not done, and has used little processor time)

A sample passes if its fork, after the tests have finished, hands over a word drawn for this one fork. A program that ends
the process earlier, by whatever call, does not pass. While a sample runs, its output is discarded; afterwards every
process and file that it left is removed, so that none can reach the next sample.
"""

import ctypes
import importlib
import importlib.util
import json
import math
import os
import random
import resource
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

PARENT_DEATH_SIGNAL, DUMPABLE = 1, 4  # PR_SET_PDEATHSIG and PR_SET_DUMPABLE in <linux/prctl.h>; a copy: this runs alone
DETAIL_CHARACTERS = 400
WALL_FACTOR = 3  # the limit is of processor time: other work on the machine changes no verdict
TOO_LONG = -1

# Where tests find their comparisons. Names that a program rebinds in them are restored before its result is compared.
PROTECTED = (
    "builtins", "numpy", "numpy.testing", "pandas", "pandas.testing", "pandas._testing", "torch", "torch.testing",
    "tensorflow", "PIL.Image")
WITH_MODULES_BELOW = ("numpy.testing.", "pandas._testing.", "torch.testing.")

LIBC = ctypes.CDLL(None)


def main() -> None:
    """Serve until stdin ends."""
    settings = json.loads(sys.argv[1])
    LIBC.prctl(DUMPABLE, 0)  # a sample cannot look into this process or into its descriptors
    requests, verdicts = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    settings["private"] = [requests.fileno(), verdicts.fileno()]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    os.environ |= {
        "MPLBACKEND": "Agg", "MPLCONFIGDIR": tempfile.mkdtemp(), "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    for name in settings["modules"]:
        with suppress(ImportError):
            importlib.import_module(name)
    protected()
    answer(verdicts, {"missing": [name for name in settings["watched"] if importlib.util.find_spec(name) is None]})
    for line in requests:
        request = json.loads(line)
        for index, sample in enumerate(request["samples"]):
            answer(verdicts, {"started": index})
            status, detail = run(request["code_context"], sample, request["seconds"], settings)
            answer(verdicts, {"sample": index, "status": status, "detail": detail})


def answer(verdicts: Any, event: dict[str, Any]) -> None:
    """Write one event as a line, without buffering."""
    print(json.dumps(event), file=verdicts, flush=True)


def run(code_context: str, sample: str, seconds: float, settings: dict[str, Any]) -> tuple[str, str]:
    """Run one sample in a fork with its own directory, and return its status and detail."""
    directory = tempfile.mkdtemp()
    word = secrets.token_bytes(16)
    received, sent = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (received, *settings["private"]):
            os.close(descriptor)
        test(code_context, sample, seconds, directory, word, sent)
    os.close(sent)
    message, signal_number = receive(received, child, time.monotonic() + WALL_FACTOR * seconds)
    os.close(received)
    clean_up(directory, child, settings["contained"])
    if signal_number == signal.SIGXCPU:
        return "timeout", f"not done after {seconds:g} s of processor time"
    if signal_number == TOO_LONG:
        return "waits", f"not done after {WALL_FACTOR * seconds:g} s on the clock"
    if message == word:
        return "pass", ""
    detail = message.decode(errors="replace")[:DETAIL_CHARACTERS]
    return "fail", detail or "the process ended before the tests did"


def receive(descriptor: int, child: int, deadline: float) -> tuple[bytes, int]:
    """What the fork wrote, and the signal that ended it: 0 for none, TOO_LONG if it has not ended by ``deadline``."""
    message, is_open = b"", True
    while time.monotonic() < deadline:
        if is_open and select.select([descriptor], [], [], 0.1)[0]:
            part = os.read(descriptor, 4096)
            message += part[:4 * DETAIL_CHARACTERS - len(message)]
            is_open = bool(part)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:  # a process that it left behind may hold the pipe open forever
            return message, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if not is_open:
            time.sleep(0.005)
    return message, TOO_LONG


def clean_up(directory: str, child: int, contained: bool) -> None:
    """Remove what the sample left: processes and, if ``contained``, files."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if contained:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0 if contained else os.WNOHANG)[0]:
            pass
    shutil.rmtree(directory, ignore_errors=True)
    for place in ("/tmp", "/dev/shm") if contained else ():
        for name in os.listdir(place):
            path = os.path.join(place, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(path)


def test(code_context: str, sample: str, seconds: float, directory: str, word: bytes, verdict: int) -> None:
    """In the fork: run the tests on the sample, hand over the word or the error, and end."""
    message = b""
    try:
        os.setsid()
        LIBC.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        LIBC.prctl(DUMPABLE, 1)  # or the sample could not read its own /proc/self
        os.dup2(0, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        os.chdir(directory)
        tests: dict[str, Any] = {}
        tests["exec"] = lambda code, variables: guarded(code, variables, tests)
        exec(code_context, tests)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        tests["test_execution"](sample)
        if "test_string" in tests:
            tests["test_string"](sample)
        message = word
    except BaseException as error:
        with suppress(BaseException):
            message = f"{type(error).__name__}: {error}".encode(errors="replace")[:4 * DETAIL_CHARACTERS - 1]
    finally:
        with suppress(BaseException):
            os.write(verdict, message)
        os._exit(0)


def guarded(code: str, variables: dict[str, Any], tests: dict[str, Any]) -> None:
    """Run a program for DS-1000's tests. Afterwards, restore builtins, the libraries' comparisons and the tests' own names,
    including the code of functions among them."""
    spaces = [*protected(), tests]
    before = [(space, dict(space)) for space in spaces]
    functions = [
        (function, function.__code__, function.__defaults__, function.__kwdefaults__)
        for space in spaces for value in space.values() for function in unwrapped(value)]
    try:
        exec(code, variables)
    finally:
        for space, names in before:  # calls nothing that the program may have changed
            for name, value in names.items():
                if space.get(name) is not value:
                    space[name] = value
        for function, its_code, defaults, keyword_defaults in functions:
            function.__code__, function.__defaults__, function.__kwdefaults__ = its_code, defaults, keyword_defaults


def unwrapped(value: Any) -> Iterator[FunctionType]:
    """A Python function, and the functions that it wraps."""
    while type(value) is FunctionType:
        yield value
        value = value.__dict__.get("__wrapped__")


def protected() -> list[dict[str, Any]]:
    """The namespaces of the PROTECTED modules of libraries in use, and of the modules with their comparisons."""
    names = [name for name in PROTECTED if name.partition(".")[0] in sys.modules]
    modules = [importlib.import_module(name) for name in names]
    modules += [module for name, module in list(sys.modules.items()) if name.startswith(WITH_MODULES_BELOW) and module]
    return [vars(module) for module in modules]


if __name__ == "__main__":
    main()
