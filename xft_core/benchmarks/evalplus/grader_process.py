"""The program that grades the samples of one problem. It runs contained and imports nothing of this package.

stdin, one JSON object: {"problem": fields of Problem, "samples": [program, ...], "min_time_limit": seconds,
"time_limit_factor": float, "memory_bytes": int, "max_processes": int}

stdout, one JSON object a line, each written when it is known:
    {"reference": null}                                 the canonical solution ran; or, and then nothing follows,
    {"reference": "ZeroDivisionError: ..."}             it failed
    {"sample": 0, "base": "pass", "plus": "fail"}       statuses of evalplus: pass, fail, timeout
"plus" is the verdict on base and plus inputs together: when base fails, plus has the same status and is not run.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Versions whose check of HumanEval/32 (find_zero) never counts an input as done, so that no program can pass.
FIND_ZERO_IS_BROKEN = ("0.3.0", "0.3.1")
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>
OUTPUT_BYTES = 64 * 2**20


def main() -> None:
    """Grade one job (see above)."""
    die_with_parent()
    job = json.load(sys.stdin)
    verdicts = os.fdopen(os.dup(1), "w")
    os.register_at_fork(after_in_child=lambda: cut_off(verdicts.fileno()))
    multiprocessing.set_start_method("fork")
    limit_resources(job["memory_bytes"], job["max_processes"])
    problem = job["problem"]
    dataset = {"HumanEval": "humaneval", "Mbpp": "mbpp"}.get(problem["task_id"].split("/")[0], "custom")
    try:
        checks = [reference(problem, problem[name], dataset) for name in ("base_input", "plus_input")]
    except BaseException as error:
        print(json.dumps({"reference": f"{type(error).__name__}: {error}"}), file=verdicts, flush=True)
        return
    print(json.dumps({"reference": None}), file=verdicts, flush=True)
    for index, sample in enumerate(job["samples"]):
        base = check(sample, checks[0], job)
        plus = check(sample, checks[1], job) if base == "pass" else base
        print(json.dumps({"sample": index, "base": base, "plus": plus}), file=verdicts, flush=True)


def reference(problem: dict[str, Any], inputs: list[list[Any]], dataset: str) -> dict[str, Any]:
    """What evalplus's check needs to know for one list of inputs: the right outputs and how long they took."""
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    if dataset == "mbpp":
        inputs = mbpp_deserialize()(problem["task_id"], inputs)
    entry_point = problem["entry_point"]
    outputs, seconds = trusted_exec(
        problem["prompt"] + problem["canonical_solution"], inputs, entry_point, record_time=True,
        output_not_none=dataset == "mbpp" and entry_point in MBPP_OUTPUT_NOT_NONE_TASKS)
    atol = problem["atol"]
    if (dataset, entry_point) == ("humaneval", "find_zero") and version("evalplus") in FIND_ZERO_IS_BROKEN:
        dataset, outputs, atol = "custom", [AnyRoot(arguments[0], atol) for arguments in inputs], 0
    return {"dataset": dataset, "inputs": inputs, "entry_point": entry_point, "expected": outputs, "atol": atol,
            "ref_time": seconds}


def check(sample: str, arguments: dict[str, Any], job: dict[str, Any]) -> str:
    """Status of one program on one list of inputs, stopping at the first that fails."""
    from evalplus.eval import untrusted_check

    if not arguments["inputs"]:
        return "pass"
    status, _ = untrusted_check(
        code=sample, fast_check=True, min_time_limit=job["min_time_limit"],
        gt_time_limit_factor=job["time_limit_factor"], **arguments)
    return status


class AnyRoot:
    """Equals every root of a polynomial: evalplus's own rule for find_zero, as an expected value."""

    def __init__(self, coefficients: list[float], atol: float) -> None:
        self.coefficients, self.atol = coefficients, atol

    def __eq__(self, value: Any) -> bool:
        from evalplus.eval._special_oracle import _poly

        return abs(_poly(self.coefficients, value)) <= self.atol


def mbpp_deserialize() -> Callable[[str, list[Any]], list[Any]]:
    """evalplus's function that restores the tuples, sets and complex numbers JSON cannot hold."""
    import evalplus

    # The package's own __init__ imports Hugging Face datasets: 1.5 s that no problem needs.
    package = types.ModuleType("evalplus.data")
    package.__path__ = [str(Path(evalplus.__file__).parent / "data")]
    sys.modules["evalplus.data"] = package
    from evalplus.data.mbpp import mbpp_deserialize_inputs

    return mbpp_deserialize_inputs


def die_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def cut_off(verdicts: int) -> None:
    """In the process that runs a sample: nothing it writes can reach the verdicts, or outlive this program."""
    die_with_parent()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, verdicts):
        os.dup2(nowhere, descriptor)


def limit_resources(memory_bytes: int, max_processes: int) -> None:
    """Hard limits, for this process and all it starts."""
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(memory_bytes)
    for name, value in (("AS", memory_bytes), ("DATA", memory_bytes), ("FSIZE", OUTPUT_BYTES), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    # Kernels before 5.14 count the processes of the user outside the sandbox too: then there may be no room for even
    # one under this limit, and it is left as it was.
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (max_processes, before[1]))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    resource.setrlimit(resource.RLIMIT_NPROC, (max_processes, max_processes))


if __name__ == "__main__":
    main()
