"""Grade a benchmark's own canonical solutions, or programs that only return None: all must pass, or none.

    python -m performance.canonical BENCHMARK.jsonl.gz [--broken] [--workers 2] [--problems 20] [--without-filter]

Prints the counts, the seconds, and the peak memory of all processes together (resident set, shared pages counted once for each
process, read every 0.1 s). To get the cost of the system call filter, compare with --without-filter, which uses a filter that
lets every call through. Exits with 1 if a verdict is not what it must be.
"""

import argparse
import json
import logging
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox import bubblewrap, canaries
from xft_core.stages.configs import EvaluateStage
from xft_core.stages.run import run_stage

SECONDS_BETWEEN_READINGS = 0.1


def main() -> int:
    """Grade and print; the exit status says whether all verdicts are what they must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--broken", action="store_true", help="grade programs that only return None")
    parser.add_argument("--workers", type=int, help="default: one per core")
    parser.add_argument("--problems", type=int, help="only the first N problems")
    parser.add_argument("--without-filter", action="store_true", help="use a filter that lets every system call through")
    arguments = parser.parse_args()
    if arguments.without_filter:
        let_every_call_through()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    expected = "fail" if arguments.broken else "pass"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, PeakMemory() as memory:
        samples, output = Path(directory) / "samples.jsonl", Path(directory) / "out"
        with samples.open("w", encoding="utf-8") as stream:
            for problem in EvalPlus().load_problems(arguments.benchmark, arguments.problems):
                program = problem.prompt + problem.canonical_solution
                if arguments.broken:
                    program = f"def {problem.entry_point}(*arguments):\n    return None\n"
                stream.write(json.dumps({"task_id": problem.task_id, "solution": program}) + "\n")
        run_stage(EvaluateStage(
            output=output, benchmark=str(arguments.benchmark), samples=samples,
            evaluate=EvaluateConfig(workers=arguments.workers)))
        results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    verdicts = {problem["task_id"]: problem["samples"][0] for problem in results["problems"]}
    for suite in ("base", "plus"):
        passed = sum(verdict[suite] == "pass" for verdict in verdicts.values())
        print(f"{suite}: {passed} of {len(verdicts)} pass")
    wrong = {name: verdict for name, verdict in verdicts.items() if verdict["plus"] != expected}
    for name, verdict in wrong.items():
        print(f"{name}: {verdict['base']} {verdict['plus']} {verdict['detail']}")
    print(f"{time.monotonic() - started:.0f} s, peak memory {memory.peak_bytes / 1e9:.2f} GB, cpu {results['cpu']}, "
          f"sandbox {results['sandbox']}, sha256 {results['benchmark']['sha256'][:12]}…")
    return 1 if wrong else 0


def let_every_call_through() -> None:
    """Disable the filter, for measurements only: the programs here are the benchmark's own."""
    instruction = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET, SECCOMP_RET_ALLOW
    bubblewrap.build_filter = lambda machine=None: instruction  # type: ignore[assignment]
    canaries.WALLS = canaries.CALLS = ""  # the check would notice that it lets calls through


class PeakMemory:
    """Record the peak resident memory of this process and its descendants within the context."""

    def __enter__(self) -> "PeakMemory":
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(SECONDS_BETWEEN_READINGS):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            self.peak_bytes = max(self.peak_bytes, total)


if __name__ == "__main__":
    sys.exit(main())
