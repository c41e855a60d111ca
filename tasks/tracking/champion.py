"""The alias ``champion`` of a registered model: which version has it, which may take it, and how it moves.

A version carries its measurements, so that two versions can be compared without their runs: one tag for each measurement,
named after the held-out data, the benchmark and the number of problems. Versions without a common measurement are not compared.
"""

import sys
import time
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from tasks.tracking.client import client
from xft_core.runtime.quantities import told_apart

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
MEASURED = "xft.measured."
RIVAL_SECONDS = 120.0  # two runs that promote versions within this time may have done so at once
PATIENCE = 20
NEXT = sys.maxsize  # the number of a version that does not exist yet: later than all others
UNMEASURED = "its held-out loss or pass@1 is not a number, or some of its answers could not be graded."


class Measurement(BaseModel):
    """How good a merged model is: nats per held-out response token, and the fraction of problems solved (plus tests). A recipe
    without a benchmark has only the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_out_nll: FiniteFloat
    pass_at_1: FiniteFloat | None
    benchmark: str | None
    problems: int | None


@dataclass(frozen=True)
class _Contender:
    version: int
    measured: Measurement | None


def champion_of(name: str) -> "ModelVersion | None":
    """Return the version that has the alias; None if none has it or there is no such model."""
    if not client().search_registered_models(f"name = '{name}'", max_results=1):
        return None
    return _champion(name)


def measurement_of(version: "ModelVersion", measured_by: str) -> Measurement | None:
    """Return the version's value of this measurement; None if it was not measured this way."""
    return _contender(version, measured_by).measured


def obstacle(name: str, number: int, measurement: Measurement | None, measured_by: str) -> str | None:
    """Return what keeps version ``number`` (NEXT: a future one) from the alias; None if nothing does or it has the alias."""
    if measurement is None:
        return UNMEASURED
    champion = champion_of(name)
    if champion is None or int(champion.version) == number:
        return None
    return _why_not(_contender(champion, measured_by), _Contender(number, measurement))


def contend(name: str, number: int, measured_by: str) -> tuple[bool, str]:
    """Move the alias to version ``number`` if it belongs there. Returns whether it is there now, and why.

    MLflow cannot move an alias on the condition that it has not moved since. So a run first notes on its version that it
    promotes it, and only then moves the alias (see ``_place_best``).
    """
    for _ in range(PATIENCE):
        champion = _champion(name)
        version = client().get_model_version(name, str(number))
        mine = _contender(version, measured_by)
        if mine.measured is None:
            return False, UNMEASURED
        if champion is not None and int(champion.version) == number:
            return True, _standing(version, mine.measured)
        if champion is not None and (reason := _why_not(_contender(champion, measured_by), mine)):
            return False, reason
        tag(version, "xft.champion_over", str(champion.version) if champion else "none")
        tag(version, "xft.champion_at", f"{time.time():.3f}")
        _place_best(name, number, measured_by)
    return False, "other runs kept moving the alias; start this run again."


def _champion(name: str) -> "ModelVersion | None":
    number = client().get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client().get_model_version(name, str(number))


def _contender(version: "ModelVersion", measured_by: str) -> _Contender:
    text = version.tags.get(MEASURED + measured_by)
    try:
        measured = None if text is None else Measurement.model_validate_json(text)
    except ValidationError:  # someone else wrote the tag: nothing to compare with
        measured = None
    return _Contender(int(version.version), measured)


def _place_best(name: str, number: int, measured_by: str) -> None:
    """Move the alias to the best of the versions being promoted at this time.

    A run looks again after each of its moves, and stops only when the alias is on the best version. So the run that moves it
    last has seen every note, because a later note would have been followed by a later move.
    """
    best, placed = number, None
    while best != placed:
        client().set_registered_model_alias(name, CHAMPION, str(best))
        placed, best = best, _best_of_rivals(name, number, measured_by)
    _correct_others(name, best)


def _best_of_rivals(name: str, number: int, measured_by: str) -> int:
    rivals = [
        version for version in client().search_model_versions(f"name = '{name}'")
        if int(version.version) == number or abs(time.time() - _seconds(version.tags.get("xft.champion_at"))) < RIVAL_SECONDS]
    contenders = sorted(
        (item for version in rivals if (item := _contender(version, measured_by)).measured), key=lambda item: item.version)
    return reduce(lambda best, item: item if _why_not(best, item) is None else best, contenders).version


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _correct_others(name: str, champion: int) -> None:
    """Update versions that still say they are champion."""
    for version in client().search_model_versions(f"name = '{name}'"):
        if int(version.version) != champion and version.tags.get("xft.champion", "").startswith("yes"):
            tag(version, "xft.champion", f"no: version {champion} took its place.")


def _why_not(champion: _Contender, mine: _Contender) -> str | None:
    """Return what keeps ``mine`` from replacing the champion; None if nothing does. Of two equal versions, the later wins."""
    of = f"of version {champion.version}"
    if champion.measured is None or mine.measured is None:
        return (f"it cannot be compared with version {champion.version}, which was not measured on the same held-out rows "
                "and the same problems. To replace that version, move the alias by hand.")
    mine_nll, its_nll = mine.measured.held_out_nll, champion.measured.held_out_nll
    mine_solved, its_solved = mine.measured.pass_at_1, champion.measured.pass_at_1
    worse = []
    if mine_nll > its_nll:
        worse.append("held-out loss {} is worse than {} {}".format(*told_apart(mine_nll, its_nll, 4), of))
    if mine_solved is not None and its_solved is not None and mine_solved < its_solved:
        shown = told_apart(100 * mine_solved, 100 * its_solved, 1)
        worse.append("pass@1 on all tests {} % is worse than {} % {}".format(*shown, of))
    if not worse and (mine_nll, mine_solved) == (its_nll, its_solved) and mine.version < champion.version:
        worse.append(f"as good as version {champion.version}, which is later")
    return "; ".join(worse) + "." if worse else None


def _standing(version: "ModelVersion", measured: Measurement) -> str:
    over = version.tags.get("xft.champion_over")
    if measured.pass_at_1 is None:
        numbers, compared = f"held-out loss {measured.held_out_nll:.4f}", "is not worse than that"
    else:
        numbers = f"held-out loss {measured.held_out_nll:.4f} and pass@1 on all tests {100 * measured.pass_at_1:.1f} %"
        compared = "are not worse than those"
    if over in (None, "none"):
        return f"{numbers}; no version was champion before it."
    return f"{numbers} {compared} of version {over}."


def tag(version: "ModelVersion", name: str, value: str) -> None:
    """Set a tag unless ``version``, as just read, has it."""
    if version.tags.get(name) != value:
        client().set_model_version_tag(version.name, str(version.version), name, value)
