"""What can be seen to have gone wrong, from numbers alone: while a model trains, and from the metrics of a finished stage.

Every limit is here, so that a stage that stops and a report that warns mean the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from xft_core.errors import XftError
from xft_core.recipe.sections import ChecksConfig, Recipe
from xft_core.recipe.steps import TUNED, Step
from xft_core.store.results.base import HasMetrics
from xft_core.store.results.curve import CurvePoint, CurveValues
from xft_core.store.results.dpo import DpoMetrics
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.mix import MixMetrics
from xft_core.store.results.sft import SftMetrics, WatchedTraining

POINTS = 5  # of the training curve, averaged: one high point is not a divergence
RISE, LEAST_RISE = 0.3, 0.3  # as a share of the lowest mean, and in nats
DEAD_LOAD = 0.01  # share of the routed tokens
MOVED = 0.01  # difference of a share from uniform mixing


class RunWentWrong(XftError):
    """Something that the recipe's checks say the run must stop for. What was finished is kept."""


class Finding(str):
    """A sentence on what was noticed. ``check``: the field of the recipe's section checks that it is about."""

    check: str

    def __new__(cls, check: str, text: str) -> "Finding":
        """The sentence, of this check."""
        made = super().__new__(cls, text)
        made.check = check
        return made


class TrainingWatch:
    """Follows a training curve, point by point, as it is written (see training.py).

    ``diverged_at_step``: where the loss was first found to have risen far above its lowest point, None if nowhere.
    ``dead_steps``: the longest run of steps at each of whose points some layer had a routed expert with a load below
    DEAD_LOAD. A resumed training feeds the points of the curve again, and comes to the same.
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
        """One point of the curve."""
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
        """What the stage's manifest keeps of it."""
        return WatchedTraining(dead_expert_steps=self.dead_steps, diverged_at_step=self.diverged_at_step)

    def stop_for(self, checks: ChecksConfig) -> None:
        """Raise RunWentWrong for what ``checks`` says training must stop for."""
        raise_for(training_findings(self.found(), checks, only_stop=True))


def recipe_findings(recipe: Recipe) -> list[str]:
    """Sentences on choices of a recipe that do not fit each other, though it can be run."""
    if recipe.prompt_style == recipe.data.template:
        return []
    return [
        f"The tuned models are asked in the form {recipe.prompt_style} (generate.prompt_style) and were tuned in the form "
        f"{recipe.data.template} (data.template): they answer in a form they never saw. Set generate.prompt_style to auto."]


def training_findings(training: WatchedTraining, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """Sentences on what was noticed in a training; ``only_stop``: only those that must stop the run."""
    found: list[Finding] = []
    diverged, dead = training.diverged_at_step, training.dead_expert_steps or 0
    if diverged is not None and _wanted(checks.diverging_loss, only_stop):
        found.append(Finding("diverging_loss", (
            f"The training loss diverged: at step {diverged} it was far above its lowest point. Lower sft.learning_rate, "
            "lengthen sft.warmup_steps, or set sft.max_grad_norm to 1.")))
    if dead >= checks.dead_expert_steps and _wanted(checks.dead_experts, only_stop):
        found.append(Finding("dead_experts", (
            f"In some layer a routed expert got less than {DEAD_LOAD:.0%} of the tokens for {dead} steps on end. Raise "
            "sft.balance_loss_weight, or turn upcycle.router_noise on.")))
    return found


def mixing_findings(metrics: MixMetrics, method: str, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """As ``training_findings``, on mixing coefficients; only those that were learned can disappoint."""
    found: list[Finding] = []
    if metrics.rows_too_few is not None and _wanted(checks.missing_material, only_stop):
        found.append(Finding("missing_material", (
            f"merge.cross_validation had {metrics.rows_too_few} rows to learn on, fewer than its folds: no penalty was chosen, "
            "and merge.uniform_penalty counts as it is. Use more data, or raise data.reserved_rows.")))
    if method != "learned" or metrics.kept_uniform:
        return found
    merged, uniform = metrics.held_out_nll_merged, metrics.held_out_nll_uniform
    worse = merged is not None and uniform is not None and round(merged, 4) > round(uniform, 4)  # as far as it is told
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
            f"The mixing coefficients did not move (largest change {movement:.4f}): this is uniform mixing in all but "
            "name. Raise merge.learning_rate or merge.epochs.")))
    return found


def merge_findings(
    metrics: MergeMetrics, base: float | None, checks: ChecksConfig, only_stop: bool = True,
) -> list[Finding]:
    """As ``training_findings``, on a merged model of these ``metrics``; ``base``: held-out loss of the base model."""
    merged = metrics.held_out_nll
    if base is None or merged is None or merged <= base or not _wanted(checks.worse_than_base, only_stop):
        return []
    return [Finding("worse_than_base", worse_than_base("The merged model", merged, base))]


def preference_findings(metrics: DpoMetrics, checks: ChecksConfig, only_stop: bool = False) -> list[Finding]:
    """As ``training_findings``, on a model that was to learn preferences."""
    if metrics.pairs or not _wanted(checks.missing_material, only_stop):
        return []
    passing, failing = metrics.answers_passing or 0, metrics.answers_failing or 0
    if not passing and not failing:
        advice = "Every answer was cut off or could not be graded: raise generate.max_new_tokens"
    else:
        problems = "easier" if not passing else "harder" if not failing else "other"
        advice = f"Raise dpo.num_samples or dpo.temperature, or take {problems} problems"
    return [Finding("missing_material", (
        f"DPO learned nothing: none of the {metrics.problems_without_pairs} problems of dpo.benchmark has both an answer that "
        f"passes and one that fails ({passing} different answers passed, {failing} failed), so its model is the merged one, "
        f"unchanged. {advice}."))]


def stage_findings(step: Step, recipe: Recipe, made: Mapping[str, HasMetrics], only_stop: bool = False) -> list[Finding]:
    """What was noticed in what ``step`` made; ``only_stop``: only what the run must stop for. ``made``: what it and the
    steps that it needs made, by role."""
    own = made[step.role]
    if step.stage == "sft":
        return training_findings(SftMetrics.of(own), recipe.checks, only_stop)
    if step.stage == "mix":
        return mixing_findings(MixMetrics.of(own), recipe.merge.method, recipe.checks, only_stop)
    if step.stage == "dpo":
        return preference_findings(DpoMetrics.of(own), recipe.checks, only_stop)
    if step.stage == "merge":
        # The untouched Mixture-of-Experts stands for the base model where upcycling is the identity.
        base = SftMetrics.of(made[TUNED["moe"]]).held_out_nll_before if recipe.upcycle.is_identity else None
        return merge_findings(MergeMetrics.of(own), base, recipe.checks, only_stop)
    return []


def worse_than_base(name: str, loss: float, base: float) -> str:
    """A sentence for a model whose held-out loss, in nats per response token, is above the base model's."""
    return f"{name} is worse than the base model on held-out rows: {loss:.4f} against {base:.4f} nats per response token."


def raise_for(findings: Sequence[str]) -> None:
    """Raise RunWentWrong if there are any."""
    if findings:
        raise RunWentWrong(
            f"{' '.join(findings)} The recipe's checks say to stop for this; what was finished is kept. To continue "
            "anyway, set that field of checks to report.")


def _wanted(reaction: str, only_stop: bool) -> bool:
    return reaction == "stop" or not only_stop
