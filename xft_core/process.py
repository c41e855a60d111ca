"""What every process of ours does at its start."""

import ctypes
import logging
import os
import signal
import sys

EXIT_MAY_PASS = 75
EXIT_KILLED = 128 + signal.SIGKILL  # as a shell says it
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>


def quiet_libraries() -> None:
    """Keep libraries from saying what is of no use to a person. To be called before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("httpx", "datasets", "filelock", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started this one is gone: no orphan goes on training."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() == 1:
        sys.exit(EXIT_MAY_PASS)
