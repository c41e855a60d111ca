"""Print stock evalplus's verdicts on the samples of one problem. against_evalplus.py runs this inside a sandbox.

stdin, one JSON object: {"problem": fields of Problem, "samples": [program, …], "min_time_limit", "time_limit_factor"};
stdout: a JSON list of [base status, plus status], with plus only if base passed.
"""

import json
import os
import sys

from xft_core.benchmarks.evalplus.contained.comparison import dataset_of, wants_not_none
from xft_core.benchmarks.evalplus.contained.evalplus_files import mbpp_inputs


def main() -> None:
    """Check one problem's samples in the way of ``evalplus.evaluate``."""
    job = json.load(sys.stdin)
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(job["memory_bytes"])
    from evalplus.eval import untrusted_check
    from evalplus.gen.util import trusted_exec

    problem = job["problem"]
    entry_point, dataset = problem["entry_point"], dataset_of(problem["task_id"])
    suites = []
    for name in ("base_input", "plus_input"):
        inputs = mbpp_inputs(problem["task_id"], problem[name]) if dataset == "mbpp" else problem[name]
        expected, seconds = trusted_exec(
            problem["prompt"] + problem["canonical_solution"], inputs, entry_point, record_time=True,
            output_not_none=wants_not_none(dataset, entry_point))
        suites.append({"inputs": inputs, "expected": expected, "ref_time": seconds})
    verdicts = []
    for sample in job["samples"]:
        statuses: list[str] = []
        for suite in suites:
            if statuses and (statuses[0] != "pass" or not suite["inputs"]):
                statuses.append(statuses[0])
                continue
            status, _ = untrusted_check(
                dataset, sample, entry_point=entry_point, atol=problem["atol"], fast_check=True,
                min_time_limit=job["min_time_limit"], gt_time_limit_factor=job["time_limit_factor"], **suite)
            statuses.append(status)
        verdicts.append(statuses)
    print(json.dumps(verdicts))
