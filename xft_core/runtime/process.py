"""Startup of all our processes, and the ways a command ends."""

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

OPTIMIZE = re.compile(r"-[A-Za-z]*O[A-Za-z]*")  # -OO, also combined with other letters
OUTPUT, ERRORS = 1, 2  # file descriptors
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>

# Variables that torchrun, mpirun, srun, accelerate and DeepSpeed set for the processes that they start. TrainingArguments,
# accelerate and torch.distributed always read them: as the rank in a group, or as settings that replace the recipe's
# (ACCELERATE_MIXED_PRECISION silently turns an fp32 training into a 16-bit one).
LAUNCHER_PREFIXES = (
    "ACCELERATE_", "DEEPSPEED_", "FSDP_", "HOROVOD_", "MEGATRON_LM_", "MV2_", "OMPI_", "PARALLELISM_CONFIG_", "PMI_", "PMIX_",
    "SLURM_", "SMDATAPARALLEL_", "TORCHELASTIC_", "TORCH_ELASTIC_")
LAUNCHER_VARIABLES = frozenset({
    "FORK_LAUNCHED", "GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "NODE_RANK", "NPROC", "RANK", "ROLE_NAME", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "SM_FRAMEWORK_PARAMS", "SM_HP_MP_PARAMETERS", "WORLD_SIZE"})


def drop_launcher_variables() -> None:
    """Remove launcher variables set by the shell, the pod or the batch system, so that this process works alone.

    Call this before torch, accelerate or transformers are imported. The processes of a multi-process stage
    (stages/torchrun.py) get their variables afterwards, from the launcher that we start.
    """
    for name in list(os.environ):
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]


def quiet_libraries() -> None:
    """Suppress library output that is useless to users. Call this before the libraries are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("httpx", "datasets", "filelock", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def leave_out_torch() -> None:
    """Make transformers load tokenizers without torch, because importing torch takes longer than most work of a tokenizer.

    For processes that do nothing else with transformers: a module that is None in ``sys.modules`` counts as not installed.
    Has no effect if torch is already imported.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent process ends, so that no orphan continues to train."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() == 1:
        sys.exit(ExitCode.MAY_PASS)


@contextmanager
def imports() -> Iterator[None]:
    """Disable garbage collection during imports, which create no garbage: this saves a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command's ``main``: SIGINT interrupts it, it ends quietly when nobody reads its output any more, and Python
    keeps docstrings.

    A shell starts background commands of a script with SIGINT ignored, and Python does not change this. Some supervisors
    ignore SIGCHLD, and bubblewrap cannot wait for its program then. transformers reads docstrings on import and fails under
    PYTHONOPTIMIZE=2.
    """
    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the parent process
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if arguments is None:
            keep_docstrings()
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGCHLD, signal.SIG_DFL)):
                if signal.getsignal(number) is signal.SIG_IGN:
                    signal.signal(number, handler)
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
    """Make SIGINT end the work of a command after ``seconds`` at most, with ``said`` on standard error, or immediately once the
    work is done.

    Servers that must be notified at the end may be unavailable, and many places wait for them. So use this only for work that
    may be killed at any moment, and with child processes that die with this one.
    """
    interrupted, left = threading.Event(), threading.Event()

    def leave() -> None:
        time.sleep(seconds)
        if not left.is_set():
            with suppress(OSError):
                os.write(ERRORS, f"{said}\n".encode())
        os._exit(ExitCode.INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if left.is_set():  # only deliveries to servers remain
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
    """The system's error message, with the file that it concerns, if any."""
    file = f": {str(error.filename)[:200]!r}" if error.filename is not None else ""
    return f"{error.strerror or error}{file}"


def keep_docstrings() -> None:
    """Re-execute this process with docstrings if Python was told to drop them."""
    if sys.flags.optimize < 2:
        return
    first, *given = sys.orig_argv
    options = list(takewhile(lambda item: item.startswith("-") and item != "-m", given))
    kept = [item.replace("O", "") if OPTIMIZE.fullmatch(item) else item for item in options]
    set_by_variable = os.environ.pop("PYTHONOPTIMIZE", None) is not None
    if set_by_variable or kept != options:
        os.execv(sys.executable, [first, *(item for item in kept if item != "-"), *given[len(options):]])


def _drop_closed_pipes() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more. Such a pipe is redirected to the null
    device, so that no error is raised when Python ends."""
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
