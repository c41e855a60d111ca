"""Kill anything: a small but complete pipeline whose processes and servers are killed at random moments until it finishes.

    python -m tests.reliability.kill_harness --directory DIR [--kills 53] [--seed 0] [--figures FILE.json]

Every target (the stage's process, the flow's process, the worker, Prefect's server, MLflow's server) is killed with
SIGKILL at every moment (the start of the run, each stage, the publishing). The kill comes after a random part of the
stage's undisturbed duration, or up to a third later, when artifacts are sent and curves delivered. Servers are restarted
at once. A run that ends incomplete is started again with the same recipe, alternating between ``xft run`` and a run of
the deployment. checks.py describes the checks after every kill and at the end.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.reliability import checks, processes
from tests.reliability.services import MLFLOW, PREFECT, WORKER, Services
from tests.tasks.object_store.proxy import BUCKET, raw_client

CHILD, FLOW = "stage's process", "flow's process"
TARGETS = (CHILD, FLOW, WORKER, PREFECT, MLFLOW)
START, PUBLISH = "start", "publish"
STAGES = ("prepare", "upcycle", "sft", "mix", "merge", "generate", "evaluate", "report")
MOMENTS = (START, *STAGES, PUBLISH)
LOST_SECONDS = 90.0  # without a process for this long, the run has nobody left to finish it
ROUND_SECONDS = 7200.0
KILLS_PER_ROUND = 25
ARMED_AT_ONCE = 2
TINY = RECIPE | {"experiment": "kills", "baseline": {"enabled": True}}


@dataclass
class Kill:
    """One kill: its target, its moment, and the fraction of the moment's undisturbed duration after which it comes."""

    target: str
    moment: str
    part: float
    due: float | None = None
    pid: int | None = None


@dataclass
class Attempt:
    """One start of the recipe. ``outcome``: completed, failed (with the reason in ``why``), killed, or lost after a kill."""

    kind: str
    process: subprocess.Popen[bytes] | None = None
    flow_run_id: str | None = None
    outcome: str = ""
    why: str = ""
    seen: float = field(default_factory=time.monotonic)


class Round:
    """One home: start the recipe, disturb it with ``kills``, and start it again until it is complete."""

    def __init__(
        self, services: Services, directory: Path, number: int, kills: list[Kill], durations: dict[str, float],
    ) -> None:
        self.services, self.number, self.kills, self.durations = services, number, kills, durations
        self.home, self.store = directory / f"home-{number}", f"s3://{BUCKET}/round-{number}"
        self.home.mkdir()
        self.recipe = self.home / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(TINY | {"experiment": f"kills-{number}"}), encoding="utf-8")
        self.attempts: list[Attempt] = []
        self.done: list[dict[str, Any]] = []
        self.lifetimes: dict[str, list[float]] = {}
        self._born: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        """Run until an attempt is complete. Kills whose moment did not come stay in ``kills``."""
        deadline = time.monotonic() + ROUND_SECONDS
        self._begin()
        while True:
            assert time.monotonic() < deadline, f"round {self.number} does not come to an end"
            found = processes.of_home(self.home)
            self._arm(found)
            for kill in [kill for kill in self.kills if kill.due is not None and time.monotonic() >= kill.due]:
                if self._carry_out(kill, found):
                    self.kills.remove(kill)
                    checks.store_is_whole(self.home, self.services, self.store)
                    break
            attempt = self.attempts[-1]
            self._look(attempt, found)
            if attempt.outcome:
                print(f"  attempt {len(self.attempts)} ({attempt.kind}): {attempt.outcome} {attempt.why}", flush=True)
                if attempt.outcome == "completed":
                    return
                for kill in self.kills:
                    kill.due = kill.pid = None
                self._begin()
            time.sleep(0.05)

    def _begin(self) -> None:
        for name in (PREFECT, MLFLOW, WORKER):
            self.services.wait_until_up(name)
        environment = self.services.run_environment(self.home, self.store)
        if len(self.attempts) % 2 == self.number % 2:
            with (self.home / f"attempt-{len(self.attempts) + 1}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "flows.cli", "run", str(self.recipe)], cwd=REPOSITORY,
                    env=self.services.environment(**environment), stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True)
            self.attempts.append(Attempt("xft run", process=process))
        else:
            deployment = next(item["id"] for item in self._api("/deployments/filter") if item["name"] == "pipeline")
            run = self._api(f"/deployments/{deployment}/create_flow_run", {
                "parameters": {"recipe_file": str(self.recipe)}, "state": {"type": "SCHEDULED"},
                "job_variables": {"env": environment}})
            self.attempts.append(Attempt("deployment", flow_run_id=str(run["id"])))
        self._started, self._published = False, False

    def _arm(self, found: processes.Processes) -> None:
        """When a moment begins, set the time of a kill that waits for it."""
        now = time.monotonic()
        at_work = processes.stages(found)
        for pid, stage in at_work.items():
            if pid not in self._born:
                self._born[pid] = stage, now
                self._arm_one(stage, pid)
        for pid in self._born.keys() - at_work.keys():
            stage, born = self._born.pop(pid)
            self.lifetimes.setdefault(stage, []).append(now - born)
        if not self._started and processes.flows(found):
            self._started = True
            self._arm_one(START, None)
        if not self._published and self._started and list((self.home / "artifacts" / "report").glob("*/manifest.json")):
            self._published = True
            self._arm_one(PUBLISH, None)

    def _arm_one(self, moment: str, pid: int | None) -> None:
        for kill in [kill for kill in self.kills if kill.moment == moment and kill.due is None][:ARMED_AT_ONCE]:
            kill.pid, kill.due = pid, time.monotonic() + kill.part * self.durations[moment]

    def _carry_out(self, kill: Kill, found: processes.Processes) -> bool:
        """Return whether the kill was carried out. If not, it waits for the next such moment."""
        at_work = sorted(set(processes.stages(found).values()))
        if kill.target in (PREFECT, MLFLOW, WORKER):
            if not self.services.is_up(kill.target):
                return False
            self.services.kill(kill.target)
            self.services.start(kill.target)
        else:
            victims = processes.flows(found) if kill.target == FLOW else [kill.pid] if kill.pid in found else []
            if not victims:  # already ended: this machine is faster now than in the undisturbed run
                kill.due, kill.pid, kill.part = None, None, kill.part / 2
                return False
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.done.append({"target": kill.target, "moment": kill.moment, "part": round(kill.part, 2), "at work": at_work,
                          "attempt": len(self.attempts), "round": self.number})
        working = ", ".join(at_work) or "-"
        print(f"  killed the {kill.target} at {kill.moment} + {kill.part:.0%}; at work: {working}", flush=True)
        return True

    def _look(self, attempt: Attempt, found: processes.Processes) -> None:
        """Record how the attempt ended, once it has."""
        if attempt.process is not None:
            if (status := attempt.process.poll()) is not None:
                log = self.home / f"attempt-{len(self.attempts)}.log"
                attempt.outcome = {0: "completed", -9: "killed"}.get(status, "failed")
                attempt.why = "" if status in (0, -9) else log.read_text(errors="replace").rpartition("error: ")[2][:600]
            return
        if found or not self.services.is_up(PREFECT):
            attempt.seen = time.monotonic()
            return
        state = self._api(f"/flow_runs/{attempt.flow_run_id}", method="GET")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            attempt.outcome = {"COMPLETED": "completed", "CRASHED": "killed"}.get(state["type"], "failed")
            attempt.why = "" if state["type"] == "COMPLETED" else str(state["message"])[:600]
        elif time.monotonic() - attempt.seen > LOST_SECONDS and state["type"] != "SCHEDULED":
            attempt.outcome, attempt.why = "lost", f"no process any more, state {state['name']}"

    def _api(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        for _ in range(60):
            try:
                answer = httpx.request(method, self.services.api + path, json=body or {}, timeout=30)
                answer.raise_for_status()
                return answer.json()
            except httpx.TransportError:  # the server is starting
                time.sleep(1)
        raise AssertionError("Prefect's server did not come back")


def plan(number: int, generator: random.Random, targets: Sequence[str] = TARGETS) -> list[Kill]:
    """Plan ``number`` kills: every target at every moment before any pair repeats."""
    pairs = [(target, moment) for target in targets for moment in MOMENTS if target != CHILD or moment in STAGES]
    found: list[Kill] = []
    while len(found) < number:
        generator.shuffle(pairs)
        found += [Kill(target, moment, generator.uniform(0, 4 / 3)) for target, moment in pairs]
    return found[:number]


def main() -> int:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="a directory for everything; it must be empty")
    parser.add_argument("--kills", type=int, default=53)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "XFT_", "MLFLOW_TRACKING")):
            del os.environ[name]
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    raw_client((host, port)).create_bucket(Bucket=BUCKET)
    services = Services(options.directory, f"http://{host}:{port}")
    services.objects = raw_client((host, port))
    os.environ["PREFECT_HOME"] = str(options.directory / "prefect")
    os.environ["PREFECT_API_URL"] = services.api
    try:
        return _run(services, options)
    finally:
        services.close()
        s3.stop()
        for number in range(20):
            for pid in processes.of_home(options.directory / f"home-{number}"):
                os.kill(pid, signal.SIGKILL)


def _run(services: Services, options: Any) -> int:
    started = time.monotonic()
    for name in (PREFECT, MLFLOW):
        services.start(name)
    for name in (PREFECT, MLFLOW):
        services.wait_until_up(name)
    from flows.local.provision import provision

    provision(options.directory)
    services.start(WORKER)
    generator = random.Random(options.seed)
    undisturbed = Round(services, options.directory, 0, [], {})
    undisturbed.run()
    digests = checks.digests(undisturbed.home)
    checks.round_is_right(undisturbed, digests)
    durations = {stage: max(times) for stage, times in undisturbed.lifetimes.items()} | {START: 10.0, PUBLISH: 6.0}
    print(f"undisturbed: {len(digests)} artifacts, {time.monotonic() - started:.0f} s with the servers' start; seconds by "
          f"stage {({name: round(value, 1) for name, value in durations.items()})}", flush=True)
    rounds = [undisturbed]
    done: list[dict[str, Any]] = []
    left = plan(options.kills, generator, options.targets)
    while left:
        kills, left = left[:KILLS_PER_ROUND], left[KILLS_PER_ROUND:]
        print(f"round {len(rounds)}: {len(kills)} kills, {len(left)} later", flush=True)
        disturbed = Round(services, options.directory, len(rounds), kills, durations)
        rounds.append(disturbed)
        disturbed.run()
        checks.round_is_right(disturbed, digests)
        done += disturbed.done
        left += disturbed.kills  # those whose moment did not come
        for kill in disturbed.kills:
            kill.due = kill.pid = None
    figures = {
        "kills": len(done), "rounds": len(rounds) - 1, "seconds": round(time.monotonic() - started),
        "by target": Counter(kill["target"] for kill in done), "by moment": Counter(kill["moment"] for kill in done),
        "attempts": Counter(f"{attempt.kind}: {attempt.outcome}" for item in rounds[1:] for attempt in item.attempts),
        "failed": [attempt.why for item in rounds[1:] for attempt in item.attempts if attempt.outcome in ("failed", "lost")],
        "artifacts": len(digests), "all kills": done}
    text = json.dumps(figures, indent=1)
    print(text)
    if options.figures:
        options.figures.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
