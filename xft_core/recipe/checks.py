"""Detect problems from numbers alone: while a model trains, and in the metrics of a finished stage.

Every limit is defined here, so that the checks that stop a stage and the warnings of a report agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from xft_core.errors import XftError
from xft_core.recipe.sections import ChecksConfig, Recipe
from xft_core.recipe.steps import MOE_MODEL, TUNED, Step
from xft_core.store.results.base import HasMetrics
from xft_core.store.results.curve import CurvePoint, CurveValues
from xft_core.store.results.dpo import DpoMetrics
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.mix import MixMetrics
from xft_core.store.results.sft import SftMetrics, WatchedTraining

POINTS = 5  # points of the training curve to average, so that one high point is no divergence
RISE, LEAST_RISE = 0.3, 0.3  # as a share of the lowest mean, and in nats
DEAD_LOAD = 0.01  # share of the routed tokens
MOVED = 0.01  # difference of a share from uniform mixing


class RunWentWrong(XftError):
    """A problem for which the recipe's checks stop the run. Finished work is kept."""


class Finding(str):
    """A sentence that describes a problem. ``check``: the related field of the recipe section checks."""

    check: str

    def __new__(cls, check: str, text: str) -> "Finding":
        """Create the sentence for this check."""
        made = super().__new__(cls, text)
        made.check = check
        return made


class TrainingWatch:
    """Follow a training curve point by point as it is written (see training.py).

    ``diverged_at_step``: the first step where the loss was far above its lowest point; None if there is none.
    ``dead_steps``: the longest run of steps in which, at every point, some layer had a routed expert with a load below
    DEAD_LOAD. A resumed training feeds the earlier points again and gets the same result.
    """

    def __init__(self, points: Iterable[CurvePoint] = ()) -> None:
        self.diverged_at_step: int | None = None
        self.dead_steps = 0
        self._losses: list[float] = []
        self._lowest = float("inf")
        self._alive_at = 0
        for point in points:
            self.add(point.step, point.values)

    def add(self, step: int, values: CurveValues) -> None:
        """Add one point of the curve."""
        if values.loss is not None:
            self._losses = [*self._losses[1 - POINTS:], values.loss]
            if len(self._losses) == POINTS:
                mean = fmean(self._losses)
                self._lowest = min(self._lowest, mean)
                if self.diverged_at_step is None and mean > self._lowest + max(RISE * self._lowest, LEAST_RISE):
                    self.diverged_at_step = step
        if values.expert_load_min is not None:
            if values.expert_load_min >= DEAD_LOAD:
                self._alive_at = step
            self.dead_steps = max(self.dead_steps, step - self._alive_at)

    def found(self) -> WatchedTraining:
        """The findings that the stage's manifest stores."""
        return WatchedTraining(dead_expert_steps=self.dead_steps, diverged_at_step=self.diverged_at_step)

    def stop_for(self, checks: ChecksConfig) -> None:
        """Raise RunWentWrong for problems for which ``checks`` stops the training."""
        raise_for(training_findings(self.found(), checks, only_stop=True))


def recipe_findings(recipe: Recipe) -> list[str]:
    """Sentences about fields of a valid recipe that do not fit together."""
    if recipe.prompt_style == recipe.data.template:
        return []
    return [
        f"The tuned models are prompted in the style {recipe.prompt_style} (generate.prompt_style) but were tuned in the style "
        f"{recipe.data.template} (data.template), so they answer prompts of an unfamiliar style. Set generate.prompt_style "
        "to auto."]


def training_findings(training: WatchedTraining, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """Sentences about problems in a training; ``only_stop``: only those that must stop the run."""
    found: list[Finding] = []
    diverged, dead = training.diverged_at_step, training.dead_expert_steps or 0
    if diverged is not None and _wanted(checks.diverging_loss, only_stop):
        found.append(Finding("diverging_loss", (
            f"The training loss diverged: at step {diverged} it was far above its lowest point. Lower sft.learning_rate, "
            "lengthen sft.warmup_steps, or set sft.max_grad_norm to 1.")))
    if dead >= checks.dead_expert_steps and _wanted(checks.dead_experts, only_stop):
        found.append(Finding("dead_experts", (
            f"In some layer, a routed expert received less than {DEAD_LOAD:.0%} of the tokens for {dead} consecutive steps. "
            "Raise sft.balance_loss_weight, or turn on upcycle.router_noise.")))
    return found


def mixing_findings(metrics: MixMetrics, method: str, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """As ``training_findings``, for mixing coefficients. Except for missing rows, only learned or predicted ones can fail."""
    found: list[Finding] = []
    if metrics.rows_too_few is not None and _wanted(checks.missing_material, only_stop):
        found.append(Finding("missing_material", (
            f"merge.cross_validation had {metrics.rows_too_few} rows to learn on, fewer than its folds: no penalty was chosen, "
            "and merge.uniform_penalty was used instead. Use more data, or raise data.reserved_rows.")))
    if method != "learned" or metrics.kept_uniform:
        return found
    merged, uniform = metrics.held_out_nll_merged, metrics.held_out_nll_uniform
    worse = merged is not None and uniform is not None and round(merged, 4) > round(uniform, 4)  # as shown
    if metrics.predicted:
        if worse and _wanted(checks.worse_than_uniform, only_stop):
            found.append(Finding("worse_than_uniform", (
                f"Predicted mixing is worse than uniform mixing on held-out rows ({merged:.4f} against {uniform:.4f}): leave "
                "merge.generator_from empty to learn, or use merge.method=uniform.")))
        return found
    if worse and _wanted(checks.worse_than_uniform, only_stop):
        found.append(Finding("worse_than_uniform", (
            f"Learned mixing is worse than uniform mixing on held-out rows ({merged:.4f} against {uniform:.4f}): "
            "lower merge.learning_rate, or use merge.method=uniform.")))
    movement = metrics.movement_max
    if movement is not None and metrics.delta_scale_moved is not None:
        movement = max(movement, metrics.delta_scale_moved)
    if movement is not None and movement < MOVED and _wanted(checks.unmoved_coefficients, only_stop):
        found.append(Finding("unmoved_coefficients", (
            f"The mixing coefficients barely moved (largest change {movement:.4f}), so this is practically uniform mixing. "
            "Raise merge.learning_rate or merge.epochs.")))
    return found


def merge_findings(
    metrics: MergeMetrics, base: float | None, checks: ChecksConfig, only_stop: bool = True,
) -> list[Finding]:
    """As ``training_findings``, for a merged model with these ``metrics``; ``base``: held-out loss of the base model."""
    merged = metrics.held_out_nll
    if base is None or merged is None or merged <= base or not _wanted(checks.worse_than_base, only_stop):
        return []
    return [Finding("worse_than_base", worse_than_base("The merged model", merged, base))]


def preference_findings(metrics: DpoMetrics, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """As ``training_findings``, for a model trained on preferences."""
    if metrics.pairs or not _wanted(checks.missing_material, only_stop):
        return []
    passing, failing = metrics.answers_passing or 0, metrics.answers_failing or 0
    if not passing and not failing:
        advice = "Every answer was cut off or could not be graded: raise generate.max_new_tokens"
    else:
        problems = "easier" if not passing else "harder" if not failing else "other"
        advice = f"Raise dpo.num_samples or dpo.temperature, or use {problems} problems"
    return [Finding("missing_material", (
        f"DPO learned nothing: none of the {metrics.problems_without_pairs} problems of dpo.benchmark has both an answer that "
        f"passes and one that fails ({passing} different answers passed, {failing} failed), so its model is the merged one, "
        f"unchanged. {advice}."))]


def stage_findings(step: Step, recipe: Recipe, made: Mapping[str, HasMetrics], only_stop: bool = False) -> list[Finding]:
    """Problems in the output of ``step``; ``only_stop``: only those that must stop the run. ``made``: the outputs of this
    step and of the steps that it needs, by role."""
    own = made[step.role]
    if step.stage == "sft":
        return training_findings(SftMetrics.of(own), recipe.checks, only_stop)
    if step.stage == "mix":
        return mixing_findings(MixMetrics.of(own), recipe.merge.method, recipe.checks, only_stop)
    if step.stage == "dpo":
        return preference_findings(DpoMetrics.of(own), recipe.checks, only_stop)
    if step.stage == "merge":
        # Where upcycling is the identity, the untrained Mixture-of-Experts has the loss of the base model.
        base = SftMetrics.of(made[TUNED[MOE_MODEL]]).held_out_nll_before if recipe.upcycle.is_identity else None
        return merge_findings(MergeMetrics.of(own), base, recipe.checks, only_stop)
    return []


def worse_than_base(name: str, loss: float, base: float) -> str:
    """The sentence for a model whose held-out loss, in nats per response token, is above the base model's."""
    return f"{name} is worse than the base model on held-out rows: {loss:.4f} against {base:.4f} nats per response token."


def raise_for(findings: Sequence[str]) -> None:
    """Raise RunWentWrong if there are any findings."""
    if findings:
        raise RunWentWrong(
            f"{' '.join(findings)} The recipe's checks stop the run for this; finished work is kept. To continue "
            "anyway, set that field of checks to report.")


def _wanted(reaction: str, only_stop: bool) -> bool:
    return reaction == "stop" or not only_stop
