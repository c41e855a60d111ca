"""The durations of stages on this machine, stored in <home>/rates.json as the basis for the estimates of ``xft plan``.

The manifests in the store are not suitable: fetched artifacts come from other machines, resumed stages record only their
last part, and no manifest records threads. A file that is damaged or of another version counts as empty.
"""

import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xft_core.files.digests import digest_of
from xft_core.files.disk import file_lock, write_whole
from xft_core.planning.shape import Shape
from xft_core.recipe.sections import PROCESS_FIELDS, Recipe, SftConfig
from xft_core.recipe.steps import MOE_MODEL, Step, planned_roles

logger = logging.getLogger(__name__)

NAME = "rates.json"
KEPT = 10  # newest timings of similar stages
KEPT_IN_ALL = 1000
SPEED_OF_SFT = ("batch_size", "micro_batch_size", "precision", "optimizer", "gradient_checkpointing", "packing",
                "num_processes", "num_nodes")
SPEED_OF_MIX = ("method", "batch_size", "micro_batch_size", "precision")
SPEED_OF_GENERATE = ("precision", "batch_size", "max_new_tokens", "backend")

Positive = Annotated[float, Field(gt=0, lt=1e30, allow_inf_nan=False)]


class Timing(BaseModel):
    """One stage that ran here from start to finish. ``likeness``: see the function; ``work``: floating-point operations as
    counted by the plan, 1 for a stage without any; ``slowdown``: caused by the machine's load, see ``machine.slowdown``;
    ``ended``: seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    likeness: str
    work: Positive
    seconds: Positive
    slowdown: float = Field(1.0, ge=1, lt=1e6)
    ended: float


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    timings: list[Timing] = []


def likeness(role: str, recipe: Recipe, shape: Shape, machine: str, threads: int) -> str:
    """A digest of everything that determines a stage's speed; stages with equal digests have comparable times. All dense
    trainings are comparable, and so are all means of models."""
    step = planned_roles(recipe)[role]
    if step.stage == "sft" and step.model != MOE_MODEL:
        role = "sft_baseline"  # the name under which the times of dense trainings are stored
    settings = _settings(step, recipe)
    return digest_of({"role": role, "shape": vars(shape), "machine": machine, "threads": threads, "settings": settings})


def _settings(step: Step, recipe: Recipe) -> dict[str, Any]:
    upcycle = {"upcycle": recipe.upcycle.recorded()}
    of_experts = upcycle if step.model == MOE_MODEL else {}
    length = {"max_length": recipe.data.max_length}
    if step.stage == "sft":
        sft: SftConfig = step.given["sft"]
        dense = {"router_gradient": "dense"} if step.model == MOE_MODEL and sft.router_gradient == "dense" else {}
        return _fields(sft, SPEED_OF_SFT) | length | dense | of_experts
    if step.stage == "mix":
        return _fields(recipe.merge, SPEED_OF_MIX) | _fields(recipe.sft, PROCESS_FIELDS) | length | upcycle
    if step.stage == "generate":
        return _fields(recipe.generate, SPEED_OF_GENERATE) | of_experts
    return upcycle | {"precision": recipe.sft.precision}


def _fields(section: BaseModel, names: tuple[str, ...]) -> dict[str, Any]:
    values = section.model_dump(mode="json")
    return {name: values[name] for name in names}


def remember(path: Path, timing: Timing) -> None:
    """Add a timing to the file at ``path``. Stages of several processes may end at the same time. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f"{path.name}.lock")):
        kept = _newest([*_read(path), timing])
        write_whole(path, _Content(timings=kept).model_dump_json(indent=1))


def timings(path: Path) -> dict[str, list[Timing]]:
    """The timings stored at ``path``, by likeness."""
    found: defaultdict[str, list[Timing]] = defaultdict(list)
    for timing in _read(path):
        found[timing.likeness].append(timing)
    return dict(found)


def now() -> float:
    """The current time for ``Timing.ended``."""
    return round(time.time(), 1)


def _read(path: Path) -> list[Timing]:
    try:
        return _Content.model_validate_json(path.read_bytes()).timings
    except FileNotFoundError:
        return []
    except (OSError, ValidationError, ValueError) as error:
        logger.warning("%r cannot be used (%s): times are estimated without it.", str(path), type(error).__name__)
        return []


def _newest(all_timings: list[Timing]) -> list[Timing]:
    counts: defaultdict[str, int] = defaultdict(int)
    kept = []
    for timing in reversed(all_timings):
        counts[timing.likeness] += 1
        if counts[timing.likeness] <= KEPT:
            kept.append(timing)
    return kept[:KEPT_IN_ALL][::-1]
