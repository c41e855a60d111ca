"""MLflow's model registry: every merged model is a version, and the alias ``champion`` names the best of them.

A version carries what it was measured by, so that two of them can be compared without their runs: one tag for each
measurement, called after the held-out data, the benchmark and the number of problems. Versions that have none in common
are not compared.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from tasks import mlflow_pages
from tasks.prefect_log import Logger
from tasks.references import ArtifactRef, PipelineRun, of_stage
from tasks.settings import settings
from tasks.tracking.client import client, log_batch
from tasks.tracking.model import MODEL_NAME
from xft_core.files.digests import digest_of
from xft_core.files.disk import locked
from xft_core.recipe.steps import PREPARED
from xft_core.runtime.quantities import told_apart
from xft_core.store.manifest import read_manifest
from xft_core.store.results.evaluate import EvaluateMetrics
from xft_core.store.results.merge import MergeMetrics

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
MEASURED = "xft.measured."
DESCRIPTION_LENGTH = 5000  # MLflow's column has no more
RIVAL_SECONDS = 120.0  # two runs that promote theirs within this time may have done so at once
PATIENCE = 20
LONGEST_TAG = 4000
Keep = Callable[[Path], str | None]  # of a directory: its address in the object store, None where there is none


class Measurement(BaseModel):
    """How good a merged model is: nats per held-out response token, and the fraction of problems solved (plus tests); of a
    recipe without a benchmark the loss alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_out_nll: FiniteFloat
    pass_at_1: FiniteFloat | None
    benchmark: str | None
    problems: int | None


@dataclass(frozen=True)
class Registration:
    """A version, whether it is the champion now, and why or why not."""

    name: str
    version: int
    champion: bool
    why: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}, {CHAMPION if self.champion else f'not {CHAMPION}'}: {self.why}"


@dataclass(frozen=True)
class _Contender:
    version: int
    measured: Measurement | None


def register(
    run: PipelineRun, artifacts: dict[str, ArtifactRef], card: str, whole: bool, keep: Keep, logger: Logger,
) -> Registration:
    """Have the run's merged model in the registry, once, and the alias where it belongs.

    The files are the run's, see ``mlflow_model.log_model``; ``whole``: with their weights; else ``keep``
    has the object store keep the directory. ``card``: the model card.
    """
    name, merged = run.recipe.registry.name or run.recipe.name, of_stage(artifacts, run.recipe, "merge")
    measured_by, measured = _measurement(run, artifacts)
    with locked(settings().locks / f"registry-{name}"):  # variants of a comparison end at the same time
        _have_model(name, run)
        version = _version_of(name, merged.digest)
        if version is None:
            version = client().create_model_version(
                name, source=_source(run, merged, whole, keep, logger), run_id=run.mlflow_run_id,
                description=_description(mlflow_pages.with_files(card, run.mlflow_run_id)), tags=_lineage(run, artifacts))
        number = int(version.version)
        if measured is not None:
            _tag(version, MEASURED + measured_by, measured.model_dump_json())
            _tag(version, "xft.held_out_nll", f"{measured.held_out_nll:.6f}")
            if measured.pass_at_1 is not None:
                _tag(version, "xft.plus_pass_at_1", f"{measured.pass_at_1:.6f}")
        champion, why = _contend(name, number, measured_by)
        standing = f"{'yes' if champion else 'no'}: {why}"
        _tag(client().get_model_version(name, str(number)), "xft.champion", standing)
    registration = Registration(name, number, champion, why)
    log_batch(run.mlflow_run_id, tags={"xft.registered_model": f"{name}/{number}", "xft.champion": standing})
    logger.info("Registered: %s", registration)
    return registration


def _measurement(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> tuple[str, Measurement | None]:
    """What the merged model was measured by (its name in tags), and the numbers; None where one is missing."""
    prepared = read_manifest(artifacts[PREPARED].path)
    held_out = next(entry.sha256 for entry in prepared.files if entry.path == "held_out.safetensors")
    loss = MergeMetrics.of(of_stage(artifacts, run.recipe, "merge")).finite().held_out_nll
    if not run.recipe.evaluate.benchmarks:
        measured = None if loss is None else Measurement(held_out_nll=loss, pass_at_1=None, benchmark=None, problems=None)
        return digest_of([held_out])[:16], measured
    graded = read_manifest(of_stage(artifacts, run.recipe, "evaluate", "merged").path)
    rates = EvaluateMetrics.of(graded)
    problems, solved = rates.problems, rates.finite().plus_pass_at_1
    measured_by = digest_of([held_out, graded.parents["benchmark"], problems])[:16]
    if loss is None or solved is None:
        return measured_by, None
    if rates.infrastructure_errors:  # a score of the other answers cannot be compared
        return measured_by, None
    benchmark = Path(run.recipe.evaluate.benchmarks[0].rpartition(":")[2]).name
    return measured_by, Measurement(held_out_nll=loss, pass_at_1=solved, benchmark=benchmark, problems=problems)


def _lineage(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> dict[str, str]:
    recipe = run.recipe
    upcycled, merged = (of_stage(artifacts, recipe, stage) for stage in ("upcycle", "merge"))
    return {
        "xft.recipe": recipe.name, "xft.seed": str(recipe.seed), "xft.digest": merged.digest, "xft.key": merged.key,
        "xft.base_model": recipe.model.path,
        "xft.base_model.digest": read_manifest(upcycled.path).parents["model"],
        "xft.data": ", ".join(recipe.data.paths)[:LONGEST_TAG], "xft.data.digest": artifacts[PREPARED].digest,
        "prefect.flow_run_id": run.flow_run_id}


def _source(run: PipelineRun, merged: ArtifactRef, whole: bool, keep: Keep, logger: Logger) -> str:
    """Where the version's files are: in the run's artifacts; in the object store when the weights are too large for
    those. There they are kept from ``xft store gc``."""
    in_run = f"{client().get_run(run.mlflow_run_id).info.artifact_uri.rstrip('/')}/{MODEL_NAME}"
    if whole:
        return in_run
    if (address := keep(merged.path)) is not None:
        return address
    logger.warning(
        "The registered version has no weights: they are larger than XFT_MLFLOW_COPY_LIMIT_MB and there is no object "
        "store (XFT_STORE). They are in %s.", merged.path)
    return in_run


def _description(card: str) -> str:
    text = card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") else card  # without its YAML front matter
    return text[:DESCRIPTION_LENGTH]


def _have_model(name: str, run: PipelineRun) -> None:
    if client().search_registered_models(f"name = '{name}'", max_results=1):
        return
    try:
        client().create_registered_model(name, description=(
            f"Merged dense models of the recipe {run.recipe.name}. The alias {CHAMPION} moves to a version whose held-out "
            "loss and pass@1 are measured on the same data as the present champion's and not worse."))
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(name: str, digest: str) -> "ModelVersion | None":
    found = _search(name, "xft.digest", digest)
    return min(found, key=lambda item: int(item.version), default=None)


def _search(name: str, tag: str, value: str) -> "list[ModelVersion]":
    return list(client().search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'"))


def _tag(version: "ModelVersion", tag: str, value: str) -> None:
    """Set a tag that ``version``, as it was just read, does not have."""
    if version.tags.get(tag) != value:
        client().set_model_version_tag(version.name, str(version.version), tag, value)


def _contend(name: str, number: int, measured_by: str) -> tuple[bool, str]:
    """Move the alias to version ``number`` if it belongs there. Returns whether it is there now, and why.

    MLflow cannot move an alias only if it still is where it was. So a run first notes on its version that it promotes
    it, and only then moves the alias (see ``_place_best``).
    """
    for _ in range(PATIENCE):
        champion = _champion(name)
        version = client().get_model_version(name, str(number))
        mine = _contender(version, measured_by)
        if mine.measured is None:
            return False, "its held-out loss or pass@1 is not a number, or some of its answers could not be graded."
        if champion is not None and int(champion.version) == number:
            return True, _standing(version, mine.measured)
        if champion is not None and (reason := _why_not(_contender(champion, measured_by), mine)):
            return False, reason
        _tag(version, "xft.champion_over", str(champion.version) if champion else "none")
        _tag(version, "xft.champion_at", f"{time.time():.3f}")
        _place_best(name, number, measured_by)
    return False, "other runs moved the alias again and again; start this one again."


def _champion(name: str) -> "ModelVersion | None":
    number = client().get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client().get_model_version(name, str(number))


def _contender(version: "ModelVersion", measured_by: str) -> _Contender:
    text = version.tags.get(MEASURED + measured_by)
    try:
        measured = None if text is None else Measurement.model_validate_json(text)
    except ValidationError:  # a tag that someone else wrote: nothing to compare with
        measured = None
    return _Contender(int(version.version), measured)


def _place_best(name: str, number: int, measured_by: str) -> None:
    """Move the alias to the best of those that are promoted at this time.

    A run looks again after each of its own moves, and leaves off only when the best is where it put the alias. Whichever
    run moves it last has then seen every note: a later note would have been followed by a later move.
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
    """Versions that were champion say so no more."""
    for version in client().search_model_versions(f"name = '{name}'"):
        if int(version.version) != champion and version.tags.get("xft.champion", "").startswith("yes"):
            _tag(version, "xft.champion", f"no: version {champion} took its place.")


def _why_not(champion: _Contender, mine: _Contender) -> str | None:
    """What keeps ``mine`` from replacing the champion, None when nothing does. Of two equal ones the later version."""
    of = f"of version {champion.version}"
    if champion.measured is None or mine.measured is None:
        return (f"it cannot be compared with version {champion.version}, which was not measured on the same held-out rows "
                "and the same problems. Move the alias by hand if it should be replaced.")
    mine_nll, its_nll = mine.measured.held_out_nll, champion.measured.held_out_nll
    mine_solved, its_solved = mine.measured.pass_at_1, champion.measured.pass_at_1
    worse = []
    if mine_nll > its_nll:
        worse.append("held-out loss {} is worse than {} {}".format(*told_apart(mine_nll, its_nll, 4), of))
    if mine_solved is not None and its_solved is not None and mine_solved < its_solved:
        worse.append("pass@1 {} % is worse than {} % {}".format(*told_apart(100 * mine_solved, 100 * its_solved, 1), of))
    if not worse and (mine_nll, mine_solved) == (its_nll, its_solved) and mine.version < champion.version:
        worse.append(f"as good as version {champion.version}, which is later")
    return "; ".join(worse) + "." if worse else None


def _standing(version: "ModelVersion", measured: Measurement) -> str:
    over = version.tags.get("xft.champion_over")
    if measured.pass_at_1 is None:
        numbers, compared = f"held-out loss {measured.held_out_nll:.4f}", "is not worse than that"
    else:
        numbers = f"held-out loss {measured.held_out_nll:.4f} and pass@1 {100 * measured.pass_at_1:.1f} %"
        compared = "are not worse than those"
    if over in (None, "none"):
        return f"{numbers}; no version was champion before it."
    return f"{numbers} {compared} of version {over}."
