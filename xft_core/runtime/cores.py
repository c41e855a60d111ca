"""How many processor cores a process is to use."""

import os


def cores() -> int:
    """Processor cores this process is meant to use: OMP_NUM_THREADS, by which a flow shares a machine, or all it may."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP allows one for each level: 4,2
    is_number = threads.isascii() and threads.isdecimal() and len(threads) < 5
    return max(1, int(threads)) if is_number else len(os.sched_getaffinity(0))
