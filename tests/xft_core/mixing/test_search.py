"""Search: it finds the minimum, one trial is the start, and a kill changes nothing; lambda, gamma, or both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xft_core.mixing.coefficients import Coefficients
from xft_core.mixing.search import best_trial, search
from xft_core.recipe.sections import MergeConfig
from xft_core.store.results.trials import Trial

START = torch.tensor([[0.75, 0.1, 0.15], [0.75, 0.2, 0.05], [0.75, 0.125, 0.125]], dtype=torch.float64)
METHODS: dict[str, dict[str, Any]] = {
    "golden": {}, "tpe": {"search_layers_per_group": 1}, "cmaes": {"search_layers_per_group": 1}}


def config(method: str, trials: int, **changes: Any) -> MergeConfig:
    return MergeConfig(search=method, search_trials=trials, **(METHODS[method] | changes))  # type: ignore[arg-type]


def bowl(target_L: list[float]) -> Callable[[torch.Tensor], float]:
    return lambda weight_LN: float((weight_LN[:, 0] - torch.tensor(target_L, dtype=torch.float64)).square().sum())


def run(
    merge: MergeConfig, loss: Callable[[torch.Tensor], float], directory: Path, seed: int = 0,
) -> tuple[torch.Tensor, list[Trial]]:
    """Search over shares only, so that gamma stays None."""
    directory.mkdir(exist_ok=True)
    found, trials = search(
        merge, Coefficients(START), lambda item: loss(item.weight), seed, directory / "trials.jsonl", lambda trial: None)
    assert found.delta_scale_L is None and found.outside_scale == 1
    return found.weight, trials


def test_golden_section_finds_the_minimum(tmp_path: Path) -> None:
    weight_LN, trials = run(config("golden", 16), bowl([0.31] * 3), tmp_path)
    assert (weight_LN[:, 0] - 0.31).abs().max() < 1e-2
    assert len({trial.values["shared_expert_weight/0"] for trial in trials}) == 16  # no value twice
    assert torch.allclose(weight_LN.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(weight_LN[:, 1] / weight_LN[:, 2], START[:, 1] / START[:, 2])  # the proportions stay


def test_golden_section_at_an_end(tmp_path: Path) -> None:
    weight_LN, _ = run(config("golden", 20), bowl([0.0] * 3), tmp_path)
    assert weight_LN[:, 0].max() < 1e-3


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_groups_of_layers_have_numbers_of_their_own(method: str, tmp_path: Path) -> None:
    loss = bowl([0.2, 0.6, 0.9])
    weight_LN, trials = run(config(method, 80), loss, tmp_path)
    assert trials[0].nll == loss(START)
    assert loss(weight_LN) < 0.2 * trials[0].nll
    weight_LN, trials = run(config(method, 3, search_layers_per_group=2), loss, tmp_path / "groups")
    assert set(trials[1].values) == {"shared_expert_weight/0", "shared_expert_weight/1"}


@pytest.mark.parametrize("method", METHODS)
def test_one_trial_is_the_start_bitwise_and_none_is_worse(method: str, tmp_path: Path) -> None:
    weight_LN, trials = run(config(method, 1), bowl([0.1, 0.2, 0.3]), tmp_path / "one")
    assert torch.equal(weight_LN, START) and len(trials) == 1
    at_the_best = bowl([0.75] * 3)
    weight_LN, trials = run(config(method, 6), at_the_best, tmp_path / "six")
    assert torch.equal(weight_LN, START) and best_trial(trials).number == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dies_at", [0, 1, 4, 13])
def test_a_kill_changes_no_bit(method: str, dies_at: int, tmp_path: Path) -> None:
    loss = bowl([0.2, 0.6, 0.9])
    evaluated: list[int] = []

    def dying(weight_LN: torch.Tensor) -> float:
        if len(evaluated) == dies_at and not dead:
            dead.append(True)
            raise KeyboardInterrupt
        evaluated.append(1)
        return loss(weight_LN)

    dead: list[bool] = []
    expected_LN, expected = run(config(method, 16), loss, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(config(method, 16), dying, tmp_path / "killed")
    weight_LN, trials = run(config(method, 16), dying, tmp_path / "killed")
    assert trials == expected and torch.equal(weight_LN, expected_LN)
    assert len(evaluated) == 16  # no point was evaluated twice


def test_a_damaged_journal_is_done_again_from_there(tmp_path: Path) -> None:
    loss = bowl([0.2, 0.6, 0.9])
    _, expected = run(config("tpe", 8), loss, tmp_path)
    path = tmp_path / "trials.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    assert run(config("tpe", 8), loss, tmp_path)[1] == expected
    assert path.read_text().splitlines() == lines


def test_seeds_differ_and_losses_that_are_no_number_lose(tmp_path: Path) -> None:
    loss = bowl([0.2, 0.6, 0.9])
    assert run(config("tpe", 8), loss, tmp_path / "0", 0)[1] != run(config("tpe", 8), loss, tmp_path / "1", 1)[1]
    weight_LN, _ = run(config("cmaes", 8), lambda w: float("nan") if not torch.equal(w, START) else 1.0, tmp_path / "nan")
    assert torch.equal(weight_LN, START)


def gammas(found: Coefficients) -> list[float]:
    return [1.0] * 3 if found.delta_scale_L is None else found.delta_scale_L.tolist()


@pytest.mark.parametrize("scope", ["ffn", "model"])
def test_gamma_is_searched_and_leaves_the_shares(scope: Any, tmp_path: Path) -> None:
    merge = config("golden", 20, search_over=["delta_scale"], delta_scale_scope=scope)
    found, trials = search(
        merge, Coefficients(START), lambda item: (gammas(item)[0] - 0.7) ** 2, 0, tmp_path / "trials.jsonl", lambda trial: None)
    assert torch.equal(found.weight, START) and gammas(found) == [pytest.approx(0.7, abs=1e-2)] * 3
    assert found.outside_scale == (gammas(found)[0] if scope == "model" else 1.0)
    assert trials[0].values == {"delta_scale/0": 1.0} and trials[0].nll == pytest.approx(0.09)


def test_lambda_and_gamma_are_searched_together(tmp_path: Path) -> None:
    merge = MergeConfig(search="cmaes", search_trials=80, search_over=["shared_expert_weight", "delta_scale"])

    def loss(item: Coefficients) -> float:
        return float((item.weight[:, 0] - 0.3).square().sum()) + (gammas(item)[0] - 0.6) ** 2

    found, trials = search(merge, Coefficients(START), loss, 0, tmp_path / "trials.jsonl", lambda trial: None)
    assert loss(found) < 0.05 * loss(Coefficients(START)) == pytest.approx(0.05 * (trials[0].nll or 0))


def test_a_start_that_has_a_gamma_is_where_the_search_begins(tmp_path: Path) -> None:
    start = Coefficients(START, delta_scale_L=torch.full((3,), 0.8, dtype=torch.float64))
    merge = config("golden", 1, search_over=["delta_scale"])
    found, trials = search(merge, start, lambda _: 1.0, 0, tmp_path / "trials.jsonl", lambda trial: None)
    assert found is start and trials[0].values == {"delta_scale/0": pytest.approx(0.8)}


@pytest.mark.parametrize(("changes", "words"), [
    ({"search": "tpe", "search_over": ["delta_scale"], "delta_scale_scope": "model", "search_layers_per_group": 1},
     "one number"),
    ({"search": "golden", "granularity": "tensor"}, "whole layers"),
    ({"method": "ties", "delta_scale": 0.7}, "creates no mixture"),
])
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MergeConfig(**changes)
