"""Start the processes of a stage with torchrun's launcher, on one machine or several, and interpret how they end.

    <output>.partial/processes/job.json         input of every process: the stage's configuration and the number of processes
    <output>.partial/processes/metrics.json     result of the first process
    <output>.partial/processes/failure-<n>.json how process n failed, if it could report it (see torchrun_worker.py)
    <output>.partial/processes/logs/            output of all processes except the first

The starting process holds the lock and publishes, and takes no part in the work. Only the first process of all writes to the
terminal.
"""

import json
import logging
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.errors import RecipeError, StageInterrupted, StageKilled, XftError, first_line
from xft_core.files.disk import write_whole
from xft_core.files.environment import rendezvous
from xft_core.recipe.steps import what_to_change
from xft_core.runtime.process import drop_launcher_variables
from xft_core.store.workspace import Workspace

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from xft_core.stages.base import StageConfig

GRACE_SECONDS = 5  # less than tasks/execution/child_process.py gives the starting process
POLL_SECONDS = 1.0
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # by torchrun's launcher

logger = logging.getLogger(__name__)


def run_in_processes(config: "StageConfig", workspace: Workspace) -> dict[str, Any]:
    """Do the work of ``config`` in its configured number of processes; returns the stage's metrics.

    Raises XftError with the message of the failed process, StageInterrupted for a killed process, RuntimeError for a bug.
    """
    directory = workspace.root / "processes"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    num_processes, num_nodes = config.processes()
    address = _address() if num_nodes > 1 else ""
    job = {
        "stage": config.stage, "config": config.model_dump(mode="json"), "id": uuid.uuid4().hex, "address": address,
        "num_processes": num_processes, "num_nodes": num_nodes}
    write_whole(directory / "job.json", json.dumps(job, indent=1))
    if address:
        logger.info("%s: waiting for %d more machines: python -m xft_core join %s --node 1 (2, ...)", config.stage,
                    num_nodes - 1, directory)
    try:
        _launch(directory, job, node=0)
    finally:
        (directory / "job.json").unlink()  # no machine may join a stage that has ended
    metrics: dict[str, Any] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    shutil.rmtree(directory)
    return metrics


def join(directory: Path, node: int) -> None:
    """Join a stage that another machine started, as machine ``node`` (from 1). Waits for ``directory``, the stage's
    ``processes`` directory. Raises the same errors as run_in_processes."""
    path = directory / "job.json"
    if not path.is_file():
        logger.info("Waiting for %s", path)
    while not path.is_file():
        time.sleep(POLL_SECONDS)
    job = json.loads(path.read_text(encoding="utf-8"))
    if not 1 <= node < job["num_nodes"]:
        last = job["num_nodes"] - 1
        raise RecipeError(f"--node is {node}, but the stage needs {last + 1} machines: use 1 to {last}.")
    _launch(directory, job, node)


def _launch(directory: Path, job: dict[str, Any], node: int) -> None:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    number = job["num_processes"]
    _check_accelerators(number)
    silent = {rank: Std.ALL for rank in range(number) if node or rank}
    several = {"rdzv_backend": "static", "rdzv_endpoint": job["address"], "rdzv_configs": {"rank": node}}
    alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # their failures are reported below
    launch = LaunchConfig(
        min_nodes=job["num_nodes"], max_nodes=job["num_nodes"], nproc_per_node=number, run_id=job["id"], max_restarts=0,
        logs_specs=DefaultLogsSpecs(str(directory / "logs" / str(node)), redirects=silent), shutdown_timeout=GRACE_SECONDS,
        **(several if job["num_nodes"] > 1 else alone))
    # -P: a file in the current directory must not shadow a module.
    command = (sys.executable, "-P", "-m", "xft_core.stages.torchrun_worker", str(directory))
    try:
        with _process_restored():
            elastic_launch(launch, command[0])(*command[1:])
    except SignalException as stopped:
        if stopped.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        raise StageInterrupted(f"{job['stage']}: stopped from outside ({stopped.sigval.name}).") from None
    except DistError as error:
        reason = first_line(error)
        raise StageInterrupted(
            f"{job['stage']}: its {job['num_nodes']} machines did not all join at {job['address']}: {reason}") from None
    except ChildFailedError as failed:
        raise _explained(failed, directory, job) from None


def _explained(failed: "ChildFailedError", directory: Path, job: dict[str, Any]) -> Exception:
    """Return the failure that caused the others: one with a user-facing message, else SIGKILL, else a bug, else another signal,
    else a lost connection, whose cause is then on another machine."""
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("failure-*.json")]
    told = {failure["kind"]: failure for failure in sorted(failures, key=lambda failure: -failure["time"])}  # first of each
    ended = {number: signal.Signals(-item.exitcode) for number, item in failed.failures.items() if item.exitcode < 0}
    total = job["num_processes"] * job["num_nodes"]
    if "explained" in told:
        return (StageInterrupted if told["explained"]["may_pass"] else XftError)(told["explained"]["message"])
    if "fault" in told and signal.SIGKILL not in ended.values():
        print(told["fault"]["message"], file=sys.stderr)
        return RuntimeError(told["fault"]["message"].splitlines()[-1])
    for number, how in ended.items():
        message = f"{job['stage']}: process {number} of {total} (from 0) was stopped from outside ({how.name})."
        if how is signal.SIGKILL:
            return StageKilled(f"{message} The usual reason is too little memory. {what_to_change(job['stage'])}")
        return StageInterrupted(message)
    if "lost" in told:
        return StageInterrupted(f"{job['stage']}: one of its {total} processes was lost ({told['lost']['message']}).")
    number, first = failed.get_first_failure()
    return RuntimeError(
        f"process {number} of {total} (from 0) ended with status {first.exitcode}; its output is in {directory / 'logs'}")


def _address() -> str:
    address = rendezvous()
    if address is None:
        raise RecipeError(
            "sft.num_nodes is more than 1, but XFT_RENDEZVOUS is not set: set it to this machine's host:port, with a free port "
            "and a host name that the other machines can reach.")
    return address


def _check_accelerators(number: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < number:
        raise RecipeError(
            f"sft.num_processes is {number}, but this machine has {torch.cuda.device_count()} accelerators: each process needs "
            "one.")


@contextmanager
def _process_restored() -> Iterator[None]:
    """Undo the signal handlers and environment variables that torchrun's launcher sets and leaves behind."""
    try:
        before = {number: signal.getsignal(number) for number in HANDLED}
        yield
    finally:
        drop_launcher_variables()
        for number, handler in before.items():
            try:
                signal.signal(number, handler)
            except (ValueError, TypeError):  # outside the main thread, no handlers were changed
                pass
