"""The number of processor cores that a process should use."""

import os


def cores() -> int:
    """Processor cores that this process should use: OMP_NUM_THREADS, which flows set to share a machine, or all available."""
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP allows one number per level: 4,2
    is_number = threads.isascii() and threads.isdecimal() and len(threads) < 5
    return max(1, int(threads)) if is_number else len(os.sched_getaffinity(0))
