"""Measure what the system call filter costs a graded program: CPU time with it, and with a filter that lets all calls through.

    python -m performance.seccomp_filter [--rounds 9]

Runs both in turns, each in its own sandbox, so that other work on the machine affects both equally. ``calls`` only makes
100,000 system calls, the worst case; ``computes`` makes none.
"""

import argparse
from statistics import median

from performance.canonical import let_every_call_through
from performance.side_by_side import print_heading, print_table
from xft_core.sandbox import bubblewrap
from xft_core.sandbox.bubblewrap import PythonProgram, open_sandbox

TIMED = "import os, time\nstarted = time.process_time()\n{}\nprint(time.process_time() - started)"
PROGRAMS = {
    "calls": TIMED.format("for _ in range(100_000): os.getppid()"),
    "computes": TIMED.format("sum(number * number for number in range(600_000))")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print_heading("The filter of system calls")
    sandbox, own = open_sandbox("bubblewrap"), bubblewrap.build_filter
    let_every_call_through()
    filters = {"with": own, "without": bubblewrap.build_filter}
    seconds: dict[tuple[str, str], list[float]] = {(name, way): [] for name in PROGRAMS for way in filters}
    for number in range(rounds):
        for name, program in PROGRAMS.items():
            for way in sorted(filters, reverse=number % 2 == 1):
                bubblewrap.build_filter = filters[way]
                done = sandbox.run(PythonProgram(program), 600)
                if done.status != 0:
                    raise SystemExit(f"{name}, {way} the filter, ended with {done.status}: {done.stderr.decode()}")
                seconds[name, way].append(float(done.stdout))
    print_table(["program", "ms with it", "ms without", "ratio"], [
        [name, *(f"{1000 * median(seconds[name, way]):.1f}" for way in filters),
         f"{median(seconds[name, 'with']) / median(seconds[name, 'without']):.3f}"] for name in PROGRAMS])


if __name__ == "__main__":
    main()
