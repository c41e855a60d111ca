"""Compare our verdicts with stock evalplus's on all kinds of programs.

    python performance/against_evalplus.py BENCHMARK.jsonl.gz [--problems 40] [--each 8] [--seed 0] [--workers 2]
    python performance/against_evalplus.py BENCHMARK.jsonl.gz --samples samples.jsonl
    python performance/against_evalplus.py --odd

Without --samples, it grades --each variants (see variants.py) of --problems problems, drawn by the seed. With --odd, it grades
the programs of odd_programs.txt, whose differences must be those in KNOWN (docs/reference/grading.md explains them). Stock
evalplus (untrusted_check) also runs inside a sandbox, one problem at a time. Prints the number of verdicts of each kind, and
every difference.
"""

import argparse
import collections
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from performance.odd_programs import KNOWN, PROBLEMS, odd_programs
from performance.variants import variants
from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.benchmarks.evalplus.grading import MOUNTS, PACKAGE, EvalPlusGrader
from xft_core.benchmarks.evalplus.problems import Problem
from xft_core.demo import DEMO_DIR
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import Resources, Sandbox, open_sandbox, python

STOCK = Path(__file__).with_name("stock_check.py")
CONFIG = EvaluateConfig(min_time_limit=1, time_limit_factor=4, memory_limit_mb=4096)  # evalplus's own defaults
PROBLEM_SECONDS, SAMPLE_SECONDS = 300, 130


def main() -> int:
    """Compare and print; the exit status says whether all verdicts were the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, nargs="?", default=DEMO_DIR / "benchmark.jsonl")
    parser.add_argument("--odd", action="store_true", help="grade the programs of odd_programs.txt")
    parser.add_argument("--samples", type=Path, help="JSONL with task_id and solution")
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--each", type=int, default=8, help="variants of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    problems = list(PROBLEMS.values()) if arguments.odd else EvalPlus().load_problems(arguments.benchmark)
    programs: dict[str, dict[str, str]]
    if arguments.odd:
        programs = {PROBLEMS[name].task_id: of_problem for name, of_problem in odd_programs().items()}
    elif arguments.samples:
        programs = collections.defaultdict(dict)
        for number, row in read_jsonl(arguments.samples):
            programs[row["task_id"]][f"sample, line {number}"] = row["solution"]
    else:
        generator = random.Random(arguments.seed)
        programs = {}
        for problem in generator.sample(problems, min(arguments.problems, len(problems))):
            made = variants(problem, arguments.seed)
            names = ["canonical", *generator.sample(sorted(set(made) - {"canonical"}), arguments.each - 1)]
            programs[problem.task_id] = {name: made[name] for name in names}
    grader, sandbox = EvalPlusGrader(CONFIG, arguments.benchmark), open_sandbox("bubblewrap", MOUNTS)
    started = time.monotonic()
    asked = [problem for problem in problems if problem.task_id in programs]
    with ThreadPoolExecutor(arguments.workers) as pool:
        found = list(pool.map(lambda problem: compare(problem, programs[problem.task_id], grader, sandbox), asked))
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    differences, expected = 0, dict(KNOWN) if arguments.odd else {}
    for problem, rows in zip(asked, found, strict=True):
        for name, ours, stock, detail in rows:
            counts[stock] += 1
            reason = expected.pop(f"{problem.task_id.removeprefix('Odd/')}: {name}", None)
            if ours != stock and reason:
                print(f"known: {problem.task_id} [{name}]: stock {'/'.join(stock)}, ours {'/'.join(ours)}: {reason}")
            elif ours != stock:
                differences += 1
                print(f"DIFFERENT {problem.task_id} [{name}]: stock {'/'.join(stock)}, ours {'/'.join(ours)} ({detail})")
    for status, count in counts.most_common():
        print(f"stock {'/'.join(status)}: {count}")
    print(f"{sum(counts.values())} samples of {len(asked)} problems, {differences} different, "
          f"{time.monotonic() - started:.0f} s")
    return 1 if differences else 0


def compare(
    problem: Problem, programs: dict[str, str], grader: EvalPlusGrader, sandbox: Sandbox,
) -> list[tuple[str, tuple[str, str], tuple[str, str], str]]:
    """Return (kind of program, our verdict, stock's verdict, our reason) for each program."""
    ours = grader.grade(problem, list(programs.values()), alone=True)
    job = {"problem": asdict(problem), "samples": list(programs.values()), "min_time_limit": CONFIG.min_time_limit,
           "time_limit_factor": CONFIG.time_limit_factor, "memory_bytes": CONFIG.memory_limit_mb * 2**20}
    program = f"import sys; sys.path.append({str(PACKAGE.parent)!r})\n" + STOCK.read_text(encoding="utf-8") + "\nmain()"
    done = sandbox.run(
        [str(python()), "-I", "-B", "-c", program], PROBLEM_SECONDS + SAMPLE_SECONDS * len(programs),
        stdin=json.dumps(job).encode(),
        resources=Resources(memory_bytes=None, resident_bytes=None, open_files=None, processes=None))
    if done.status != 0:
        print(f"{problem.task_id}: stock evalplus failed: {done.stderr.decode(errors='replace')[-500:]}", file=sys.stderr)
        return []
    stock = json.loads(done.stdout.splitlines()[-1])
    return [(name, (verdict.base, verdict.plus), tuple(statuses), verdict.detail)
            for name, verdict, statuses in zip(programs, ours, stock, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
