"""One stage in a process of its own: memory is freed at its end, and an out-of-memory kill is a failed task.

The process is waited for in the thread that started it: the kernel's "die with your parent" follows that thread.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import xft_core
from xft_core.errors import StageInterrupted, XftError
from xft_core.stages import StageConfig

EXIT_DONE, EXIT_MISTAKE, EXIT_MAY_PASS, EXIT_INTERRUPTED = 0, 2, 75, 130
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
PROGRESS_BAR = re.compile(r"\d+%\|")


class RunStopped(Exception):
    """The pipeline run that this work belongs to was cancelled."""


class StageFault(XftError):
    """A stage's process ended with a fault of the program. Trying again unchanged cannot help."""


def run_in_child(
    config: StageConfig, log: Callable[[str], None], stop: threading.Event, threads: int | None = None,
) -> None:
    """Run ``config``'s stage as ``python -m xft_core`` and wait for it; each line it writes to stderr goes to ``log``.

    ``threads``: processor cores it may use (OMP_NUM_THREADS) unless the environment says already. When ``stop`` is set
    or anything is raised here, the process and all it started get SIGTERM, and SIGKILL ten seconds later.

    Raises XftError with the stage's own message for a mistake, StageInterrupted for what may pass, StageFault for a
    fault of the program, RunStopped when ``stop`` was set.
    """
    with tempfile.TemporaryDirectory(prefix="xft-stage-") as directory:
        config_path = Path(directory) / "config.json"
        config_path.write_text(config.model_dump_json(), encoding="utf-8")
        with (Path(directory) / "stdout").open("wb") as stdout:
            process = subprocess.Popen(
                _command(config, config_path), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
                start_new_session=True, env=_environment(threads))
        assert process.stderr is not None
        lines = _Lines(log)
        try:
            _wait(process, process.stderr, lines, stop)
        finally:
            _end(process)
            lines.finish(process.stderr.read() or b"")
            process.stderr.close()
    if stop.is_set() and process.returncode != EXIT_DONE:
        raise RunStopped(f"{config.stage} was stopped. Starting the same run again goes on from its last checkpoint.")
    _raise_for_exit(config.stage, process.returncode, lines)


def _command(config: StageConfig, config_path: Path) -> list[str]:
    # -P: a file in the current directory must not shadow a module.
    return [sys.executable, "-P", "-m", "xft_core", config.stage, str(config_path), "--die-with-parent"]


def _environment(threads: int | None) -> dict[str, str]:
    # Stages know no object store; above all, code that a model wrote is graded there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    package_parent = str(Path(xft_core.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _wait(process: subprocess.Popen[bytes], stderr: IO[bytes], lines: "_Lines", stop: threading.Event) -> None:
    os.set_blocking(stderr.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stderr, selectors.EVENT_READ)
        while process.poll() is None and not stop.is_set():
            if selector.select(POLL_SECONDS):
                chunk = stderr.read()
                if chunk == b"":  # closed by the child, which may still be working
                    time.sleep(POLL_SECONDS)
                lines.add(chunk or b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, and with it whatever it started and left behind in its group."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)  # the process leads its group, so its id is the group's
    except ProcessLookupError:
        pass


def _raise_for_exit(stage: str, status: int, lines: "_Lines") -> None:
    if status == EXIT_DONE:
        return
    message = lines.error_message()
    if status < 0:
        name = signal.Signals(-status).name
        hint = (
            " The usual reason is too little memory: lower micro_batch_size or batch_size of its section, or turn on "
            "sft.gradient_checkpointing." if -status == signal.SIGKILL else "")
        raise StageInterrupted(f"{stage}: its process was ended from outside ({name}).{hint}")
    if status in (EXIT_MAY_PASS, EXIT_INTERRUPTED):
        raise StageInterrupted(message or f"{stage}: interrupted (exit status {status}).")
    if status == EXIT_MISTAKE and message:
        raise XftError(message)
    raise StageFault(
        f"{stage}: a fault of the program (exit status {status}): {lines.last or 'it said nothing'} "
        "The lines before it are in the log.")


class _Lines:
    """Splits what a process writes into lines; hands them on, without progress bars, as they come.

    The closing ``error: ...`` message is held back: whoever started the process raises it.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._rest = b""
        self.last = ""
        self._error: list[str] = []

    def add(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            # What stands before a carriage return was drawn over.
            self._take(line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace").rstrip())

    def finish(self, chunk: bytes) -> None:
        self.add(chunk + (b"\n" if chunk or self._rest else b""))

    def error_message(self) -> str:
        return "\n".join(self._error)

    def _take(self, line: str) -> None:
        if not line.strip() or PROGRESS_BAR.search(line):
            return
        self.last = line
        if line.startswith("error: "):
            self._error = [line.removeprefix("error: ")]
        elif self._error:
            self._error.append(line)
        else:
            self._log(line)
