"""What every process of ours does at its start, and how a command ends."""

import ctypes
import gc
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import takewhile
from types import FrameType

from xft_core.runtime.exit_codes import ExitCode

OPTIMIZE = re.compile(r"-[A-Za-z]*O[A-Za-z]*")  # -OO, also among other letters
OUTPUT, ERRORS = 1, 2  # file descriptors
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>

# What torchrun, mpirun, srun, accelerate and DeepSpeed tell the processes that they start. TrainingArguments, accelerate
# and torch.distributed read it wherever they find it: as the rank in a group, or as settings that replace the recipe's
# (ACCELERATE_MIXED_PRECISION makes an fp32 training one in 16 bits, without a word).
LAUNCHER_PREFIXES = (
    "ACCELERATE_", "DEEPSPEED_", "FSDP_", "HOROVOD_", "MEGATRON_LM_", "MV2_", "OMPI_", "PARALLELISM_CONFIG_", "PMI_", "PMIX_",
    "SLURM_", "SMDATAPARALLEL_", "TORCHELASTIC_", "TORCH_ELASTIC_")
LAUNCHER_VARIABLES = frozenset({
    "FORK_LAUNCHED", "GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "NODE_RANK", "NPROC", "RANK", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "SM_FRAMEWORK_PARAMS", "SM_HP_MP_PARAMETERS", "WORLD_SIZE"})


def drop_launcher_variables() -> None:
    """Make this process one that no launcher started: alone, whatever the shell, the pod or the batch system set.

    To be called before torch, accelerate or transformers are imported. The processes of one stage
    (xft_core/distributed) get theirs afterwards, from the launcher that we start.
    """
    for name in list(os.environ):
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]


def quiet_libraries() -> None:
    """Keep libraries from saying what is of no use to a person. To be called before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("httpx", "datasets", "filelock", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def leave_out_torch() -> None:
    """Have transformers load a tokenizer without torch, which takes longer to import than most tokenizers' work takes.

    For a process that does nothing else: a module that is None in ``sys.modules`` counts as one that is not installed. No
    effect once torch is imported.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started this one is gone: no orphan continues to train."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() == 1:
        sys.exit(ExitCode.MAY_PASS)


@contextmanager
def imports() -> Iterator[None]:
    """Import much without Python's looking for garbage in between, of which imports make none: a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Decorator of a command's ``main``: SIGINT interrupts it, it ends quietly when nobody reads its output any more, and
    Python keeps docstrings.

    A shell starts what a script runs in the background with SIGINT ignored, and Python leaves it so. transformers reads
    docstrings at its import and fails under PYTHONOPTIMIZE=2.
    """
    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # whoever started it has closed it
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if arguments is None:
            keep_docstrings()
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            try:
                return main(arguments)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if _drop_closed_pipes():
                return ExitCode.CLOSED_PIPE
            print(f"error: the output cannot be written: {told(error)}", file=sys.stderr)
            _write_nowhere(OUTPUT)
            return ExitCode.MISTAKE

    return run


@contextmanager
def interrupted_in_time(seconds: float, said: str) -> Iterator[None]:
    """Work of a command that SIGINT ends after ``seconds`` at the latest, with ``said`` on standard error; and at once when the
    work is done.

    Servers that are told on the way out may be away, and are waited for in many places. So this is for work that may be killed
    at any moment, whose processes die with this one.
    """
    interrupted, left = threading.Event(), threading.Event()

    def leave() -> None:
        time.sleep(seconds)
        if not left.is_set():
            with suppress(OSError):
                os.write(ERRORS, f"{said}\n".encode())
        os._exit(ExitCode.INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if left.is_set():  # nothing but deliveries to servers is left
            os._exit(ExitCode.INTERRUPTED)
        if not interrupted.is_set():
            interrupted.set()
            threading.Thread(target=leave, name="Interrupted", daemon=True).start()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        left.set()


def told(error: OSError) -> str:
    """What the system refused, and on which file, if it was about one."""
    file = f": {str(error.filename)[:200]!r}" if error.filename is not None else ""
    return f"{error.strerror or error}{file}"


def keep_docstrings() -> None:
    """Start this process again, as the same one, if Python was told to leave docstrings out."""
    if sys.flags.optimize < 2:
        return
    first, *given = sys.orig_argv
    options = list(takewhile(lambda item: item.startswith("-") and item != "-m", given))
    kept = [item.replace("O", "") if OPTIMIZE.fullmatch(item) else item for item in options]
    set_by_variable = os.environ.pop("PYTHONOPTIMIZE", None) is not None
    if set_by_variable or kept != options:
        os.execv(sys.executable, [first, *(item for item in kept if item != "-"), *given[len(options):]])


def _drop_closed_pipes() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more. Such a one goes nowhere from now on,
    so that nothing complains about it when Python ends."""
    closed = [descriptor for descriptor in (OUTPUT, ERRORS) if _has_no_reader(descriptor)]
    for descriptor in closed:
        _write_nowhere(descriptor)
    return bool(closed)


def _write_nowhere(descriptor: int) -> None:
    place = os.open(os.devnull, os.O_WRONLY)
    os.dup2(place, descriptor)
    os.close(place)


def _has_no_reader(descriptor: int) -> bool:
    looked = select.poll()
    looked.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in looked.poll(0))
