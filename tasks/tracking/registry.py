"""MLflow's model registry: which merged models become versions, and which of them has the alias ``champion``.

    registry.register    champion: a model that takes the alias, and none of a comparison's variants; all; none
    registry.approval    none: the alias moves by the rule of champion.py; required: only if a user also approves

The answer stays on the version, in the tag ``xft.approval``: if the same model is registered again, nobody is asked again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks import mlflow_pages
from tasks.prefect_log import Logger
from tasks.references import ArtifactRef, PipelineRun, of_stage
from tasks.settings import settings
from tasks.tracking.champion import (
    CHAMPION,
    MEASURED,
    NEXT,
    Measurement,
    champion_of,
    contend,
    measurement_of,
    obstacle,
    tag,
)
from tasks.tracking.client import client, log_batch
from tasks.tracking.model import MODEL_NAME
from xft_core.files.digests import digest_of
from xft_core.files.disk import locked
from xft_core.recipe.load import flatten
from xft_core.recipe.steps import MERGED_MODEL, PREPARED
from xft_core.store.manifest import read_manifest
from xft_core.store.results.evaluate import EvaluateMetrics
from xft_core.store.results.merge import MergeMetrics

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

APPROVAL = "xft.approval"
APPROVED, REJECTED, WAITING = "approved", "rejected", "waits for approval"
DESCRIPTION_LENGTH = 5000  # MLflow's column has no more
LONGEST_TAG = 4000
# Tags to search and distinguish versions by, with the field names of recipes and runs.
CHOICES = ("upcycle.num_experts", "upcycle.num_experts_per_tok", "upcycle.normalization", "merge.method",
           "merge.shared_expert_weight")
Keep = Callable[[Path], str | None]  # of a directory: its address in the object store, or None


class Proposal(BaseModel):
    """A version that could be champion and waits for a user's approval. ``measured_by`` names the measurement to compare by.
    The measurements are its own and the present champion's; None if there is no champion."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    measured_by: str
    measured: Measurement
    champion: int | None
    champion_measured: Measurement | None


class Registration(BaseModel):
    """A version (None: the model did not become one), whether it is the champion now, and why or why not. ``replaced``: the
    version that the alias just moved from, 0 if there was none; None if it did not move. ``proposal``: a user must decide."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int | None
    champion: bool
    why: str
    replaced: int | None = None
    proposal: Proposal | None = None

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name}, no version: {self.why}"
        return f"{self.name} version {self.version}, {CHAMPION if self.champion else f'not {CHAMPION}'}: {self.why}"


def register(
    run: PipelineRun, artifacts: dict[str, ArtifactRef], card: str, whole: bool, keep: Keep, logger: Logger,
) -> Registration:
    """Register the run's merged model once, and move the alias if the recipe's registry section says so.

    The files are the run's, see ``model.log_model``. ``whole``: they include the weights; otherwise ``keep`` makes the object
    store keep the directory. ``card``: the model card.
    """
    name, merged = _name(run), of_stage(artifacts, run.recipe, "merge")
    measured_by, measured = _measurement(run, artifacts)
    with locked(settings().locks / f"registry-{name}"):  # variants of a comparison end at the same time
        version = _version_of(name, merged.digest)
        if version is None and run.recipe.registry.register == "champion":
            if reason := obstacle(name, NEXT, measured, measured_by):
                return _told(run, Registration(name=name, version=None, champion=False, why=reason), logger)
        _have_model(name, run)
        if version is None:
            version = client().create_model_version(
                name, source=_source(run, merged, whole, keep, logger), run_id=run.mlflow_run_id,
                description=_description(mlflow_pages.with_files(card, run.mlflow_run_id)), tags=_lineage(run, artifacts))
        if measured is not None:
            tag(version, MEASURED + measured_by, measured.model_dump_json())
            tag(version, "xft.held_out_nll", f"{measured.held_out_nll:.6f}")
            if measured.pass_at_1 is not None:
                tag(version, "xft.plus_pass_at_1", f"{measured.pass_at_1:.6f}")
        found = _unapproved(run, version, measured, measured_by) or _contended(name, int(version.version), measured_by)
        return _told(run, found, logger)


def decide(run: PipelineRun, proposal: Proposal, approved: bool, remark: str, logger: Logger) -> Registration:
    """Carry out a user's decision. An approved version must still be no worse than the present champion."""
    name = proposal.name
    with locked(settings().locks / f"registry-{name}"):
        version = client().get_model_version(name, str(proposal.version))
        tag(version, APPROVAL, f"{APPROVED if approved else REJECTED}: {remark}".rstrip(": "))
        if approved:
            return _told(run, _contended(name, proposal.version, proposal.measured_by), logger)
        return _told(run, _rejected(name, proposal.version, remark), logger)


def _name(run: PipelineRun) -> str:
    return run.recipe.registry.name or run.recipe.name


def _contended(name: str, number: int, measured_by: str) -> Registration:
    before = champion_of(name)
    champion, why = contend(name, number, measured_by)
    previous = int(before.version) if before else 0
    return Registration(
        name=name, version=number, champion=champion, why=why,
        replaced=previous if champion and previous != number else None)


def _unapproved(
    run: PipelineRun, version: "ModelVersion", measured: Measurement | None, measured_by: str,
) -> Registration | None:
    """Return the standing of a version that needs a user's approval; None if the rule alone decides."""
    name, number = str(version.name), int(version.version)
    said, _, remark = version.tags.get(APPROVAL, "").partition(": ")
    champion = champion_of(name)
    if run.recipe.registry.approval == "none" or said == APPROVED or (champion and int(champion.version) == number):
        return None
    if said == REJECTED:
        return _rejected(name, number, remark)
    if measured is None or obstacle(name, number, measured, measured_by):
        return None
    tag(version, APPROVAL, WAITING)
    proposal = Proposal(
        name=name, version=number, measured_by=measured_by, measured=measured,
        champion=int(champion.version) if champion else None,
        champion_measured=measurement_of(champion, measured_by) if champion else None)
    return Registration(name=name, version=number, champion=False, why=f"it {WAITING}.", proposal=proposal)


def _rejected(name: str, number: int, remark: str) -> Registration:
    why = f"it was rejected{f': {remark}' if remark else ''}."
    return Registration(name=name, version=number, champion=False, why=why)


def _told(run: PipelineRun, found: Registration, logger: Logger) -> Registration:
    """Write the standing to the version, the run and the log."""
    standing = f"{'yes' if found.champion else 'no'}: {found.why}"
    if found.version is not None:
        tag(client().get_model_version(found.name, str(found.version)), "xft.champion", standing)
        log_batch(run.mlflow_run_id, tags={"xft.registered_model": f"{found.name}/{found.version}"})
    log_batch(run.mlflow_run_id, tags={"xft.champion": standing})
    logger.info("Registered: %s", found)
    return found


def _measurement(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> tuple[str, Measurement | None]:
    """Return the measurement's name in tags and the merged model's values; None instead of values if one is missing."""
    prepared = read_manifest(artifacts[PREPARED].path)
    held_out = next(entry.sha256 for entry in prepared.files if entry.path == "held_out.safetensors")
    loss = MergeMetrics.of(of_stage(artifacts, run.recipe, "merge")).finite().held_out_nll
    if not run.recipe.evaluate.benchmarks:
        measured = None if loss is None else Measurement(held_out_nll=loss, pass_at_1=None, benchmark=None, problems=None)
        return digest_of([held_out])[:16], measured
    graded = read_manifest(of_stage(artifacts, run.recipe, "evaluate", MERGED_MODEL).path)
    rates = EvaluateMetrics.of(graded)
    problems, solved = rates.problems, rates.finite().plus_pass_at_1
    measured_by = digest_of([held_out, graded.parents["benchmark"], problems])[:16]
    if loss is None or solved is None:
        return measured_by, None
    if rates.infrastructure_errors:  # a score without the ungraded answers cannot be compared
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
        "prefect.flow_run_id": run.flow_run_id,
        **{name: str(value) for name, value in flatten(recipe).items() if name in CHOICES}}


def _source(run: PipelineRun, merged: ArtifactRef, whole: bool, keep: Keep, logger: Logger) -> str:
    """Return where the version's files are: in the run's artifacts, or in the object store if the weights are too large for
    them. There they are protected from ``xft store gc``."""
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
    """Set a tag unless ``version``, as just read, has it."""
    if version.tags.get(tag) != value:
        client().set_model_version_tag(version.name, str(version.version), tag, value)
