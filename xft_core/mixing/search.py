"""Search for a few numbers of a merge by its loss on selection rows: golden section, TPE or CMA-ES (optuna).

Trial 0 is the start itself, so the best trial is never worse on these rows, and a search of one trial gives the start bit for
bit. Every trial is on disk when it ends. A resumed search asks its method again, tells it the known losses, and continues on
the same trajectory. To search another number, add an entry to NUMBERS (and its name to the recipe's section).

Shape suffixes: L layers, N experts (the shared one first).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from xft_core.errors import RecipeError
from xft_core.files.journal import append, read_appended
from xft_core.mixing.coefficients import Coefficients
from xft_core.mixing.mixture import MixtureReader
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.progress import describe_progress
from xft_core.store.results.trials import Trial

logger = logging.getLogger(__name__)

GOLDEN = (math.sqrt(5) - 1) / 2
SIGMA = 0.15  # CMA-ES' first step, as a fraction of each number's range


@dataclass(frozen=True)
class Number:
    """A number that can be searched, from ``low`` to ``high``. ``start``: its value for one layer, from the layer's
    shares (fp64, N) and gamma; ``apply``: sets a value in them."""

    low: float
    high: float
    start: Callable[[torch.Tensor, float], float]
    apply: Callable[[torch.Tensor, float, float], tuple[torch.Tensor, float]]


def _with_shared_share(weight_N: torch.Tensor, value: float) -> torch.Tensor:
    """(lambda, (1 - lambda) times the routed experts' proportions), which are equal if they have no share at all."""
    routed_R = weight_N[1:]
    total = routed_R.sum()
    proportion_R = routed_R / total if total > 0 else torch.full_like(routed_R, 1 / len(routed_R))
    return torch.cat([torch.tensor([value], dtype=weight_N.dtype), (1 - value) * proportion_R])


NUMBERS: dict[str, Number] = {
    "shared_expert_weight": Number(
        0.0, 1.0, lambda weight_N, gamma: float(weight_N[0]),
        lambda weight_N, gamma, value: (_with_shared_share(weight_N, value), gamma)),
    "delta_scale": Number(0.0, 1.5, lambda weight_N, gamma: gamma, lambda weight_N, gamma, value: (weight_N, value)),
}


class Method(Protocol):
    """Chooses the values to try next, and is told the loss of each."""

    def ask(self) -> dict[str, float]:
        """The next values by their names."""

    def tell(self, loss: float | None) -> None:
        """Take the loss of the values that ``ask`` gave last; None if it is not a number."""


class Space:
    """The searched numbers, each once for every group of layers: ``shared_expert_weight/0`` is that of the first group."""

    def __init__(self, merge: MergeConfig, start: Coefficients) -> None:
        start_LN, num_layers = start.weight, len(start.weight)
        self._start, self._is_gamma_of_model = start, merge.delta_scale_scope == "model"
        gamma_L = start.delta_scale_L
        self._gammas = [1.0] * num_layers if gamma_L is None else gamma_L.tolist()
        size = num_layers if merge.search == "golden" else min(merge.search_layers_per_group or num_layers, num_layers)
        self.groups = [range(first, min(first + size, num_layers)) for first in range(0, num_layers, size)]
        self.bounds: dict[str, tuple[float, float]] = {}
        self.start: dict[str, float] = {}
        for name in merge.search_over:
            number = NUMBERS[name]
            for index, group in enumerate(self.groups):
                mean = math.fsum(number.start(start_LN[layer], self._gammas[layer]) for layer in group) / len(group)
                self.bounds[f"{name}/{index}"] = number.low, number.high
                self.start[f"{name}/{index}"] = min(number.high, max(number.low, mean))

    def coefficients(self, values: dict[str, float]) -> Coefficients:
        """The start with these values replaced."""
        weight_LN, gammas = self._start.weight.clone(), [*self._gammas]
        for key, value in values.items():
            name, _, index = key.partition("/")
            for layer in self.groups[int(index)]:
                weight_LN[layer], gammas[layer] = NUMBERS[name].apply(weight_LN[layer], gammas[layer], value)
        if gammas == self._gammas:
            return replace(self._start, weight=weight_LN)
        outside = gammas[0] if self._is_gamma_of_model else 1.0
        return replace(
            self._start, weight=weight_LN, delta_scale_L=torch.tensor(gammas, dtype=torch.float64), outside_scale=outside)


class GoldenSection:
    """One number: the bracket shrinks by 0.618 with each evaluation (Kiefer 1953)."""

    def __init__(self, space: Space) -> None:
        (self._key, (self._low, self._high)), = space.bounds.items()
        self._known: dict[float, float] = {}
        self._kept: float | None = None
        self._asked = self._points()[0]

    def ask(self) -> dict[str, float]:
        """See Method."""
        self._asked = next(point for point in self._points() if point not in self._known)
        return {self._key: self._asked}

    def tell(self, loss: float | None) -> None:
        """See Method."""
        self._known[self._asked] = math.inf if loss is None else loss
        left, right = self._points()
        if left in self._known and right in self._known:
            if self._known[left] <= self._known[right]:
                self._high, kept = right, left
            else:
                self._low, kept = left, right
            self._known = {kept: self._known[kept]}
            self._kept = kept

    def _points(self) -> tuple[float, float]:
        """The two inner points of the bracket; one of them is exactly known from the previous bracket."""
        width = self._high - self._low
        left, right = self._high - GOLDEN * width, self._low + GOLDEN * width
        kept = self._kept
        if kept is not None and self._low < kept < self._high:
            if abs(kept - left) < abs(kept - right):
                left = kept
            else:
                right = kept
        return left, right


class Optuna:
    """optuna's TPE or CMA-ES, in memory, beginning at the start."""

    def __init__(self, space: Space, method: str, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._bounds = space.bounds
        if method == "tpe":
            sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=seed)
        else:
            sampler = optuna.samplers.CmaEsSampler(
                x0=space.start, sigma0=SIGMA * min(high - low for low, high in space.bounds.values()), seed=seed)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._study.enqueue_trial(space.start)
        self._trial: optuna.trial.Trial | None = None

    def ask(self) -> dict[str, float]:
        """See Method."""
        self._trial = self._study.ask()
        return {name: self._trial.suggest_float(name, low, high) for name, (low, high) in self._bounds.items()}

    def tell(self, loss: float | None) -> None:
        """See Method. A loss that is not a number counts as a failed trial."""
        import optuna

        assert self._trial is not None
        if loss is not None:
            self._study.tell(self._trial, loss)
        else:
            self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)


def check_searchable(merge: MergeConfig, mixture: MixtureReader) -> None:
    """Raise RecipeError if this model leaves nothing to search, or too little for the method."""
    neurons = next(iter(mixture.expert_tensors(0))).num_neurons
    if not mixture.upcycle.shared_expert and "shared_expert_weight" in merge.search_over:
        raise RecipeError(
            "merge.search_over has shared_expert_weight, but the model has no shared expert: set merge.search to none.")
    if conflict := merge.conflict_with(mixture.num_layers, neurons):
        raise RecipeError(f"{conflict}.")


def search(
    merge: MergeConfig, start: Coefficients, loss: Callable[[Coefficients], float], seed: int, journal: Path,
    told: Callable[[Trial], None],
) -> tuple[Coefficients, list[Trial]]:
    """The best of merge.search_trials (the first of equal ones), and all trials in their order.

    Args:
        start: the coefficients to start from, trial 0; of granularity layer.
        loss: on the selection rows.
        journal: file that keeps trials as they end; those in it are not evaluated again.
        told: called for every trial, including those in the journal.
    """
    space = Space(merge, start)
    method: Method = GoldenSection(space) if merge.search == "golden" else Optuna(space, merge.search, seed)
    known = read_appended(journal)
    trials: list[Trial] = []
    for number in range(merge.search_trials):
        is_start = number == 0
        values = dict(space.start) if is_start and merge.search == "golden" else method.ask()
        if number < len(known) and known[number].get("values") == values:
            nll = known[number]["nll"]
        else:
            if number < len(known):  # a damaged journal: the rest is evaluated again
                known = []
                journal.unlink()
                append(journal, *(trial.model_dump() for trial in trials))
            found = loss(start if is_start else space.coefficients(values))
            nll = found if math.isfinite(found) else None
            append(journal, {"number": number, "values": values, "nll": nll})
        if not (is_start and merge.search == "golden"):
            method.tell(nll)
        trials.append(Trial(number=number, values=values, nll=nll))
        told(trials[-1])
        shown = "no loss" if nll is None else f"loss {nll:.4f}"
        logger.info(describe_progress("mix search", number + 1, merge.search_trials, shown))
    best = best_trial(trials)
    return (start if best.number == 0 else space.coefficients(best.values)), trials


def best_trial(trials: list[Trial]) -> Trial:
    """The trial with the smallest loss, the first of equal ones; the start if no loss is a number."""
    return min(trials, key=lambda trial: (math.inf if trial.nll is None else trial.nll, trial.number))
