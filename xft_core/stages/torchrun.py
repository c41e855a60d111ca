"""Starting the processes of a stage, on one machine or several, with torchrun's launcher; and what to make of their ends.

    <output>.partial/processes/job.json         the stage's configuration and how many processes: what each is given
    <output>.partial/processes/metrics.json     what the first process gives back
    <output>.partial/processes/failure-<n>.json how process n failed, if it could say so (see worker.py)
    <output>.partial/processes/logs/            what all but the first write

The process that starts them holds the lock, publishes, and takes no part in the work. Only the first process of all speaks.
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

GRACE_SECONDS = 5  # less than tasks/execution/child_process.py gives the process that starts them
POLL_SECONDS = 1.0
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # by torchrun's launcher

logger = logging.getLogger(__name__)


def run_in_processes(config: "StageConfig", workspace: Workspace) -> dict[str, Any]:
    """Do the work of ``config`` in as many processes as it says; returns the stage's metrics.

    Raises XftError with the words of the process that failed, StageInterrupted for one that was killed, RuntimeError for a
    fault of the program.
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
        logger.info("%s: waits for %d more machines: python -m xft_core join %s --node 1 (2, ...)", config.stage,
                    num_nodes - 1, directory)
    try:
        _launch(directory, job, node=0)
    finally:
        (directory / "job.json").unlink()  # nobody is to join what has ended
    metrics: dict[str, Any] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    shutil.rmtree(directory)
    return metrics


def join(directory: Path, node: int) -> None:
    """Be machine ``node`` (from 1) of a stage that another machine started; ``directory`` is its ``processes`` directory,
    which is waited for. Raises what run_in_processes raises."""
    path = directory / "job.json"
    if not path.is_file():
        logger.info("Waits for %s", path)
    while not path.is_file():
        time.sleep(POLL_SECONDS)
    job = json.loads(path.read_text(encoding="utf-8"))
    if not 1 <= node < job["num_nodes"]:
        last = job["num_nodes"] - 1
        raise RecipeError(f"--node is {node}, but the stage wants {last + 1} machines: give 1 to {last}.")
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
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they have to say is said below
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
        raise StageInterrupted(f"{job['stage']}: ended from outside ({stopped.sigval.name}).") from None
    except DistError as error:
        reason = first_line(error)
        raise StageInterrupted(
            f"{job['stage']}: its {job['num_nodes']} machines did not all join at {job['address']}: {reason}") from None
    except ChildFailedError as failed:
        raise _explained(failed, directory, job) from None


def _explained(failed: "ChildFailedError", directory: Path, job: dict[str, Any]) -> Exception:
    """The failure that the others followed from: one with a message for people, else SIGKILL, else a fault, else another
    signal, else a lost connection, whose cause is then on another machine."""
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
        message = f"{job['stage']}: process {number} of {total} (from 0) was ended from outside ({how.name})."
        if how is signal.SIGKILL:
            return StageKilled(f"{message} The usual reason is too little memory. {what_to_change(job['stage'])}")
        return StageInterrupted(message)
    if "lost" in told:
        return StageInterrupted(f"{job['stage']}: another of its {total} processes is gone ({told['lost']['message']}).")
    number, first = failed.get_first_failure()
    return RuntimeError(
        f"process {number} of {total} (from 0) ended with status {first.exitcode}; what it said is in {directory / 'logs'}")


def _address() -> str:
    address = rendezvous()
    if address is None:
        raise RecipeError(
            "sft.num_nodes is more than 1, and XFT_RENDEZVOUS is not set: set it to host:port of this machine, as the others "
            "can reach it, with a free port.")
    return address


def _check_accelerators(number: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < number:
        raise RecipeError(
            f"sft.num_processes is {number}, this machine has {torch.cuda.device_count()} accelerators: one process wants one.")


@contextmanager
def _process_restored() -> Iterator[None]:
    """torchrun's launcher handles signals its own way and sets variables for its workers, and leaves both behind."""
    try:
        before = {number: signal.getsignal(number) for number in HANDLED}
        yield
    finally:
        drop_launcher_variables()
        for number, handler in before.items():
            try:
                signal.signal(number, handler)
            except (ValueError, TypeError):  # not the main thread, whose handlers nobody touched then
                pass
