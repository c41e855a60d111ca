"""Run the variants of a comparison as pipeline runs: in this process, or as runs of a deployment for any worker."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger, tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.states import Cancelling, Pending

from flows.pipeline import pipeline
from tasks.prefect_page import reason_of
from tasks.stopping import stop_event
from tasks.variant_tags import VariantOf, variant_of
from xft_core.errors import XftError
from xft_core.recipe.grid import Variant

DEPLOYMENT = "pipeline/pipeline"
POLL_SECONDS = 2.0
# A worker polls for runs about every ten seconds. After this long, none will come: the only worker may have just one place,
# which this comparison occupies.
PATIENCE_SECONDS = 60.0
CANCEL_SECONDS = 20.0
RUNS_PER_REQUEST = 200
EARLIEST = datetime.fromtimestamp(0, UTC)
ELSEWHERE = "Flow run encountered an exception: "  # how Prefect begins the message of a failed run

Failures = dict[str, str]


def run_here(variants: list[Variant], at_once: int) -> Failures:
    """Run the variants as flow runs of this process, ``at_once`` at a time. Returns why variants failed, by name.

    Interrupting or cancelling it stops the stages of all variants and waits until they end.
    """
    comparison, own_tags = str(flow_run.id), list(flow_run.tags or ())

    def run(variant: Variant) -> State[Any]:
        with tags(*own_tags, *_identity(variant, comparison).tags()):
            state: Any = pipeline(**_parameters(variant), return_state=True)
            return state  # type: ignore[no-any-return]

    failures = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="variant") as pool:
        futures = {pool.submit(copy_context().run, run, variant): variant for variant in variants}
        try:
            for future in as_completed(futures):
                name = futures[future].name
                try:
                    if not future.result().is_completed():
                        failures[name] = reason_of(future.result())
                except Exception as error:  # an error of Prefect around the flow; the other variants continue
                    failures[name] = f"{type(error).__name__}: {error}"
        except BaseException:
            stop_event(comparison).set()
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def run_by_deployment(variants: list[Variant]) -> Failures:
    """Run the variants as runs of the pipeline's deployment, and wait. Returns why variants failed, by name.

    Runs that an earlier attempt of this comparison started with the same recipe are adopted; active ones with another recipe
    (the file was changed before the retry) are cancelled. If no worker picks up a run for a minute and no other run is active,
    this process executes it: a comparison never waits for the place that it occupies itself. Interrupting or cancelling it
    cancels all runs. Raises XftError if there is no such deployment.
    """
    comparison = str(flow_run.id)
    with get_client(sync_client=True) as api:
        try:
            known = _started_before(api, comparison, variants)
            runs = {variant.name: known.get(variant.name) or _start(variant, comparison) for variant in variants}
            return _follow(api, runs)
        except BaseException:
            stop_event(comparison).set()
            _cancel(api, comparison)
            raise


def _follow(api: SyncPrefectClient, runs: dict[str, FlowRun]) -> Failures:
    patience = Patience(PATIENCE_SECONDS)
    while True:
        runs = _read(api, runs)
        states = {name: run.state for name, run in runs.items()}
        waiting = [run for run in runs.values() if run.state_type == StateType.SCHEDULED]
        if all(state and state.is_final() for state in states.values()):
            return {name: _told(state) for name, state in states.items() if state and not state.is_completed()}
        if waiting and patience.is_over([str(run.state_type) for run in runs.values()]):
            if _claim(api, waiting[0]):
                _carry_out(api, waiting[0])
            else:  # a worker was faster, or other runs have reached the deployment's limit
                patience = Patience(PATIENCE_SECONDS)
        else:
            time.sleep(POLL_SECONDS)


class Patience:
    """Whether to keep waiting for a worker: over once no run was active and no state changed for ``seconds``."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._before: list[str] = []
        self._since = clock()
        self._lost = False

    def is_over(self, states: list[str]) -> bool:
        """Return whether to stop waiting. Call it at every poll with the types of all states, always in the same order."""
        at_work = any(state.endswith(("PENDING", "RUNNING", "CANCELLING")) for state in states)
        if at_work:
            self._lost = False  # a worker has started to pick them up
        if at_work or (states != self._before and not self._lost):
            self._since = self._clock()
        self._before = states
        self._lost = self._lost or self._clock() - self._since >= self._seconds
        return self._lost


def _told(state: State[Any]) -> str:
    """Say why a run elsewhere did not complete. Its exception stays there, but its message says the same."""
    return (state.message or str(state.name)).removeprefix(ELSEWHERE)


def _claim(api: SyncPrefectClient, run: FlowRun) -> bool:
    """Claim a scheduled run as a worker does: the first process to set it to Pending owns it."""
    answer: OrchestrationResult[Any] = api.set_flow_run_state(run.id, Pending(message="Taken by its comparison."))
    return answer.status == SetStateStatus.ACCEPT and bool(answer.state and answer.state.is_pending())


def _carry_out(api: SyncPrefectClient, run: FlowRun) -> None:
    get_run_logger().info("No worker picks up a variant; this process runs %s.", run.name)
    run = api.read_flow_run(run.id)
    run_flow(pipeline, flow_run=run, parameters=pipeline.validate_parameters(run.parameters), return_type="state")


def _start(variant: Variant, comparison: str) -> FlowRun:
    try:
        started: Any = run_deployment(
            DEPLOYMENT, parameters=_parameters(variant, as_json=True), timeout=0,
            tags=[*(flow_run.tags or ()), *_identity(variant, comparison).tags()])
    except ObjectNotFound:
        raise XftError(
            f"This Prefect server has no deployment {DEPLOYMENT!r}. Apply prefect.yaml (`prefect deploy --all`), or choose "
            "run_in: this_process.") from None
    return started  # type: ignore[no-any-return]


def _started_before(api: SyncPrefectClient, comparison: str, variants: list[Variant]) -> dict[str, FlowRun]:
    """Return an earlier attempt's runs that are completed or still active, by variant. Cancel those of another recipe."""
    wanted = {variant.name: _parameters(variant, as_json=True) for variant in variants}
    runs = [run for run in _of(api, comparison) if (variant := variant_of(run.tags)) and variant.name in wanted]
    same, others = by_recipe(runs, wanted)
    for run in others:
        if not (run.state and run.state.is_final()):
            with suppress(Exception):  # ended meanwhile
                api.set_flow_run_state(run.id, Cancelling(message="Its comparison was changed and started again."))
    return newest_by_variant(same)


def by_recipe(runs: list[FlowRun], wanted: Mapping[str, dict[str, Any]]) -> tuple[list[FlowRun], list[FlowRun]]:
    """Split ``runs`` into those that have their variant's parameters in ``wanted``, and the others."""
    same: list[FlowRun] = []
    others: list[FlowRun] = []
    for run in runs:
        variant = variant_of(run.tags)
        expected = wanted[variant.name] if variant else {}
        given = {name: run.parameters.get(name) for name in expected}
        (same if variant and given == expected else others).append(run)
    return same, others


def newest_by_variant(runs: list[FlowRun]) -> dict[str, FlowRun]:
    """Return each variant's newest completed run, else its newest active one. ``runs`` may have any order."""
    usable = [run for run in runs if run.state and (run.state.is_completed() or not run.state.is_final())]
    usable.sort(key=lambda run: (bool(run.state and run.state.is_completed()), run.created or EARLIEST, run.id))
    return {variant.name: run for run in usable if (variant := variant_of(run.tags))}


def _of(api: SyncPrefectClient, comparison: str) -> list[FlowRun]:
    tag = VariantOf(comparison=comparison, name="", group="").tags()[0]
    found: list[FlowRun] = []
    while True:
        page = api.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])), sort=FlowRunSort.ID_DESC,
            limit=RUNS_PER_REQUEST, offset=len(found))
        found += page
        if len(page) < RUNS_PER_REQUEST:
            return found


def _read(api: SyncPrefectClient, runs: dict[str, FlowRun]) -> dict[str, FlowRun]:
    ids = [run.id for run in runs.values()]
    found: dict[Any, FlowRun] = {}
    for start in range(0, len(ids), RUNS_PER_REQUEST):
        part = FlowRunFilter(id=FlowRunFilterId(any_=ids[start:start + RUNS_PER_REQUEST]))
        found |= {run.id: run for run in api.read_flow_runs(flow_run_filter=part, limit=RUNS_PER_REQUEST)}
    return {name: found.get(run.id, run) for name, run in runs.items()}


def _cancel(api: SyncPrefectClient, comparison: str) -> None:
    """Cancel the active runs, and wait for a limited time until they end."""
    deadline = time.monotonic() + CANCEL_SECONDS
    asked: set[Any] = set()
    while time.monotonic() < deadline:
        open_runs = [run for run in _of(api, comparison) if not (run.state and run.state.is_final())]
        if not open_runs:
            return
        for run in open_runs:
            if run.id not in asked:
                with suppress(Exception):  # ended meanwhile
                    api.set_flow_run_state(run.id, Cancelling(message="Its comparison was cancelled."))
                asked.add(run.id)
        time.sleep(0.5)


def _identity(variant: Variant, comparison: str) -> VariantOf:
    return VariantOf(comparison=comparison, name=variant.name, group=variant.group)


def _parameters(variant: Variant, as_json: bool = False) -> dict[str, Any]:
    """Return the variant's recipe as parameters of the pipeline."""
    if as_json:
        return {"recipe_file": "", "overrides": [], **variant.recipe.model_dump(mode="json")}
    return {name: getattr(variant.recipe, name) for name in type(variant.recipe).model_fields}
