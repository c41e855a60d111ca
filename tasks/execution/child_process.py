"""Run one stage in its own process: memory is freed at its end, and an out-of-memory kill only fails the task.

The thread that starts a fresh process waits for it, because the kernel's parent-death signal is tied to that thread.
"""

import os
import re
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import xft_core
from tasks.execution import fork_server
from tasks.execution.fork_server import ForkedProcess
from tasks.stopping import RunStopped
from xft_core.errors import StageInterrupted, StageKilled, XftError
from xft_core.files.temporary import temporary_directory
from xft_core.recipe.steps import what_to_change
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.quantities import size
from xft_core.stages.base import StageConfig

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
SECRETS = ("AWS_", "PREFECT_API_", "MLFLOW_TRACKING_", "XFT_SERVER_")  # prefixes of variables with passwords
PROGRESS_BAR = re.compile(r"\d+%\|")
PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)
Process = subprocess.Popen[bytes] | ForkedProcess
OUT_OF_MEMORY_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)




class StageFault(XftError):
    """A stage's process ended with a program error. Retrying it unchanged cannot help."""


def run_in_child(
    config: StageConfig, log: Callable[[str], None], stop: threading.Event, threads: int | None = None,
) -> None:
    """Run ``config``'s stage as ``python -m xft_core``, forked or fresh, and wait for it. Each line that it writes to stderr
    goes to ``log``.

    ``threads``: processor cores it may use (OMP_NUM_THREADS), unless the environment already sets them. If ``stop`` is set or
    anything is raised here, the process and its descendants get SIGTERM, and SIGKILL ten seconds later.

    Raises XftError with the stage's own message for a user error, StageInterrupted for a failure that may pass (StageKilled,
    with the memory it had taken, for SIGKILL), StageFault for a program error, RunStopped if ``stop`` was set.
    """
    with temporary_directory("stage") as directory:
        config_path = directory / "config.json"
        config_path.write_text(config.model_dump_json(), encoding="utf-8")
        with (directory / "stdout").open("wb") as stdout:
            process = _start(_command(config, config_path), _environment(threads), stdout, stop)
        if process is None:
            raise _stopped(config)
        assert process.stderr is not None
        lines, memory = _Lines(log), _Memory(process.pid)
        try:
            _wait(process, process.stderr, lines, memory, stop)
        finally:
            _end(process)
            lines.finish(process.stderr.read() or b"")
            process.stderr.close()
    if stop.is_set() and process.returncode != ExitCode.DONE:
        raise _stopped(config)
    _raise_for_exit(config.stage, process.wait(), lines, memory)


def _start(command: list[str], environment: dict[str, str], stdout: IO[bytes], stop: threading.Event) -> Process | None:
    """Start a fork if possible, else a fresh process; None if ``stop`` was set before it started."""
    if process := fork_server.start(command, environment, stdout, stop):
        return process
    if stop.is_set():
        return None
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, start_new_session=True, env=environment)


def _stopped(config: StageConfig) -> RunStopped:
    return RunStopped(f"{config.stage} was stopped. Starting the same run again continues from its last checkpoint.")


def _command(config: StageConfig, config_path: Path) -> list[str]:
    # -P: a file in the current directory must not shadow a module.
    return [sys.executable, "-P", "-m", "xft_core", config.stage, str(config_path), "--die-with-parent"]


def _environment(threads: int | None) -> dict[str, str]:
    # Stages need no object store and no server. Most importantly, they grade code that a model wrote.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
    package_parent = str(Path(xft_core.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


def _wait(
    process: Process, stderr: IO[bytes], lines: "_Lines", memory: "_Memory", stop: threading.Event,
) -> None:
    os.set_blocking(stderr.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stderr, selectors.EVENT_READ)
        while process.poll() is None and not stop.is_set():
            memory.look()
            if selector.select(POLL_SECONDS):
                chunk = stderr.read()
                if chunk == b"":  # closed by the child, which may still be working
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_SECONDS)
                lines.add(chunk or b"")


def _end(process: Process) -> None:
    """End the process and every process that it left behind in its group."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)  # the process leads its group, so its id is the group's
    except ProcessLookupError:
        pass


def _raise_for_exit(stage: str, status: int, lines: "_Lines", memory: "_Memory") -> None:
    if status == ExitCode.DONE:
        return
    message = lines.error_message()
    if status < 0:
        ended = f"{stage}: a signal ended its process ({signal.Signals(-status).name})."
        if -status == signal.SIGKILL:
            raise StageKilled(f"{ended} {memory.told()} {what_to_change(stage)}")
        raise StageInterrupted(ended)
    if status == ExitCode.KILLED:  # one of several processes (sft.num_processes)
        raise StageKilled(message)
    if status in (ExitCode.MAY_PASS, ExitCode.INTERRUPTED):
        raise StageInterrupted(message or f"{stage}: interrupted (exit status {status}).")
    if status == ExitCode.MISTAKE and message:
        raise XftError(message)
    raise StageFault(
        f"{stage}: program error (exit status {status}): {lines.last or 'no output.'} "
        "The lines before it are in the log.")


class _Memory:
    """The peak memory of a process, and whether the kernel killed processes because memory ran out."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._kills = _kills_for_memory()
        self._peak = 0  # kB

    def look(self) -> None:
        """Record the peak so far: once a process has ended, it cannot be read."""
        try:
            found = PEAK.search(self._status.read_text(encoding="utf-8"))
        except OSError:
            return
        self._peak = max(self._peak, int(found[1]) if found else 0)

    def told(self) -> str:
        """Return both as sentences."""
        peak = f"It had taken up to {size(self._peak * 1024)} of memory."
        if _kills_for_memory() > self._kills:
            return f"The kernel killed it because memory was full. {peak}"
        return f"The usual reason is too little memory. {peak}"


def _kills_for_memory() -> int:
    """Return how many processes the kernel has killed since it started because memory, or a container's memory, was full."""
    try:
        found = OUT_OF_MEMORY_KILLS.search(Path("/proc/vmstat").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


class _Lines:
    """Split a process's output into lines, and pass them on as they come, without progress bars.

    The final ``error: ...`` message is held back, because the caller raises it.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._rest = b""
        self.last = ""
        self._error: list[str] = []

    def add(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            # Text before a carriage return was overwritten.
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
