"""The result of a study: every arm's losses, its chosen settings, and the ladder of claims. The content of study.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xft_core.recipe.study import StudyConfig
from xft_core.reporting.study.differences import holm, paired_difference, power

ALPHA = 0.05
RANDOM_SEED = 0  # of the bootstrap

Verdict = Literal["shown", "small", "not shown", "reversed", "not measured"]


@dataclass(frozen=True)
class Measured:
    """One arm at one seed on the rows that all arms share: ``loss_R`` in nats, summed over a row's response tokens;
    ``training_flops``: floating-point work of its training, None if it is not known."""

    loss_R: np.ndarray
    training_flops: float | None = None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Part):
    """One setting that an arm could choose."""

    settings: dict[str, Any] = Field(description="Values of the tuned fields [no unit]")
    reserved_loss: float | None = Field(description=(
        "Mean loss on the reserved rows over the tuning seeds; null if a run failed [nats per response token]"))


class ArmResult(_Part):
    """One arm at its chosen settings."""

    about: str = Field(description="What the arm is [text]")
    model: str = Field(description="Which model of the run it is [text]")
    choices: list[Choice] = Field(description="The settings that it chose from")
    chosen: int = Field(description="Number of its choice, from 0 [count]")
    losses: dict[int, float] = Field(description="Loss on the reported rows by seed [nats per response token]")
    mean: float | None = Field(description="Mean over seeds; null without a run [nats per response token]")
    spread: float | None = Field(description="Standard deviation over seeds; null for one [nats per response token]")
    training_flops: float | None = Field(description="Floating-point work of one training, mean over seeds [operations]")


class RungResult(_Part):
    """One claim, tested."""

    claim: str = Field(description="The claim [text]")
    lower: str = Field(description="Arm that is claimed to have the lower loss [text]")
    than: str = Field(description="Arm that it is compared with [text]")
    seeds: list[int] = Field(description="Seeds that both have [no unit]")
    difference: float | None = Field(description="Mean difference; negative where the claim holds [nats per response token]")
    low: float | None = Field(description="Lower end of its 95% interval over seeds and rows [nats per response token]")
    high: float | None = Field(description="Upper end of the same interval [nats per response token]")
    of_seeds: list[float] = Field(description="The difference seed by seed [nats per response token]")
    p_value: float | None = Field(description="Two-sided p-value against no difference [fraction, 0 to 1]")
    corrected: float | None = Field(description="The same, corrected for the number of claims (Holm) [fraction, 0 to 1]")
    verdict: Verdict = Field(description=(
        "shown: by at least the smallest effect, with an interval that excludes zero and a corrected p-value below 0.05; "
        "small: the same with a smaller difference; reversed: the opposite direction; not shown; not measured [text]"))


class StudyResult(_Part):
    """The content of the report of a study."""

    file_name: ClassVar[str] = "study.json"
    name: str = Field(description="Name of the study [text]")
    question: str = Field(description="The question it asks [text]")
    seeds: list[int] = Field(description="Seeds of the reported runs [no unit]")
    rows: int = Field(description="Reported rows [count]")
    tokens: int = Field(description="Their response tokens [count]")
    smallest_effect: float = Field(description="Difference that counts [nats per response token]")
    power: float = Field(description=(
        "Probability, stated beforehand, that a true difference of that size is detected [fraction, 0 to 1]"))
    arms: dict[str, ArmResult] = Field(description="The arms by name")
    ladder: list[RungResult] = Field(description="The claims in their order")

    def breaks_at(self) -> RungResult | None:
        """The first claim of the ladder that is not shown; None if all are."""
        return next((rung for rung in self.ladder if rung.verdict != "shown"), None)


def choose(choices: list[Choice]) -> int:
    """The number of the choice with the lowest loss on the reserved rows, the first of equals; 0 if none was measured."""
    measured = [(choice.reserved_loss, number) for number, choice in enumerate(choices) if choice.reserved_loss is not None]
    return min(measured)[1] if measured else 0


def chosen_settings(choices: Mapping[str, list[Choice]]) -> dict[str, int]:
    """The number of each arm's choice. An arm that chooses among several settings, all of which failed, is left out: its first
    is no better than the others, so it is not worth its runs."""
    return {arm: choose(found) for arm, found in choices.items()
            if len(found) == 1 or any(choice.reserved_loss is not None for choice in found)}


def judge(
    study: StudyConfig, measured: Mapping[str, Mapping[int, Measured]], tokens_R: np.ndarray,
    choices: Mapping[str, list[Choice]],
) -> StudyResult:
    """The study's result. ``measured``: arm, then seed; ``tokens_R``: response tokens of the reported rows. Arms and seeds
    that failed are missing, and their claims are tested on the seeds that both arms have. p-values are corrected for all
    claims, those without a seed among them: failures must not make the other claims easier."""
    arms = {name: _arm(study, name, measured.get(name, {}), tokens_R, choices[name]) for name in study.arms}
    tested = {}
    for number, rung in enumerate(study.ladder):
        seeds = [seed for seed in study.seeds if seed in measured.get(rung.lower, {}) and seed in measured.get(rung.than, {})]
        if seeds:
            lower_SR = np.stack([measured[rung.lower][seed].loss_R for seed in seeds])
            than_SR = np.stack([measured[rung.than][seed].loss_R for seed in seeds])
            tested[number] = (seeds, paired_difference(lower_SR, than_SR, tokens_R, RANDOM_SEED))
    corrected = holm([tested[number][1].p_value if number in tested else 1.0 for number in range(len(study.ladder))])
    ladder = []
    for number, rung in enumerate(study.ladder):
        seeds, difference = tested.get(number, ([], None))
        ladder.append(RungResult(
            **rung.model_dump(), seeds=seeds, difference=difference and difference.mean, low=difference and difference.low,
            high=difference and difference.high, of_seeds=difference.of_seeds if difference else [],
            p_value=difference and difference.p_value, corrected=corrected[number] if difference else None,
            verdict=_verdict(study, difference.mean, difference.low, difference.high, corrected[number])
            if difference else "not measured"))
    return StudyResult(
        name=study.name, question=study.question, seeds=study.seeds, rows=len(tokens_R), tokens=int(tokens_R.sum()),
        smallest_effect=study.smallest_effect, arms=arms, ladder=ladder,
        power=power(study.smallest_effect, len(study.seeds), len(tokens_R), study.seed_deviation, study.row_deviation))


def _arm(
    study: StudyConfig, name: str, seeds: Mapping[int, Measured], tokens_R: np.ndarray, choices: list[Choice],
) -> ArmResult:
    losses = {seed: float(seeds[seed].loss_R.sum() / tokens_R.sum()) for seed in study.seeds if seed in seeds}
    flops = [item.training_flops for item in seeds.values() if item.training_flops is not None]
    return ArmResult(
        about=study.arms[name].about, model=study.model_of(name, choose(choices)), choices=choices, chosen=choose(choices),
        losses=losses,
        mean=fmean(losses.values()) if losses else None, spread=stdev(losses.values()) if len(losses) > 1 else None,
        training_flops=fmean(flops) if flops else None)


def _verdict(study: StudyConfig, mean: float, low: float, high: float, corrected: float) -> Verdict:
    if low > 0 and corrected < ALPHA:
        return "reversed"
    if high >= 0 or corrected >= ALPHA:
        return "not shown"
    return "shown" if mean <= -study.smallest_effect else "small"
