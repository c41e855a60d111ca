"""Search through the mix stage: on training rows, never worse than its start, recorded in the artifact and in the curves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xft_core.stages.test_mix import grown_apart, mix
from tests.xft_core.stages.test_mix import ready as ready_data
from xft_core.errors import RecipeError
from xft_core.recipe.sections import MergeConfig
from xft_core.stages.configs import MixStage
from xft_core.stages.run import run_stage
from xft_core.store.curves import read_metrics

ready = ready_data  # a fixture
UNIFORM: dict[str, Any] = {"method": "uniform", "search_rows": 8}


@pytest.mark.parametrize("search", [
    {"search": "golden"}, {"search": "tpe", "search_layers_per_group": 1}, {"search": "cmaes", "search_layers_per_group": 1}])
def test_the_best_trial_is_taken(search: dict[str, Any], ready: Path, tmp_path: Path) -> None:
    metrics, weight_LN = mix(ready, tmp_path / "mix", search_trials=6, **UNIFORM, **search)
    told = json.loads((tmp_path / "mix" / "trials.json").read_text())
    losses = [trial["nll"] for trial in told["trials"]]
    assert len(losses) == metrics["search_trials"] == 6 and told["rows"] == 8 and told["split"] == "train"
    assert metrics["search_nll_chosen"] == min(losses) <= losses[0] == metrics["search_nll_start"]
    chosen = told["trials"][told["chosen"]]["values"]
    assert weight_LN[:, 0].tolist() == (list(chosen.values()) if len(chosen) == 2 else [*chosen.values()] * 2)
    points = read_metrics(tmp_path / "mix" / "metrics.jsonl")
    assert [point["step"] for point in points if "search_nll" in point["metrics"]] == list(range(6))


def test_one_trial_is_the_method_itself(ready: Path, tmp_path: Path) -> None:
    _, plain = mix(ready, tmp_path / "plain", **UNIFORM)
    _, searched = mix(ready, tmp_path / "searched", **UNIFORM, search="golden", search_trials=1)
    assert torch.equal(plain, searched)
    assert not (tmp_path / "plain" / "trials.json").exists()


def test_what_leaves_nothing_to_search_is_refused(ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, shared_expert=False)
    merge = MergeConfig(method="uniform", search="golden", precision="fp32")
    with pytest.raises(RecipeError, match="the model has no shared expert"):
        run_stage(MixStage(output=tmp_path / "mix", model=str(directory), data=ready / "data", merge=merge))
    with pytest.raises(RecipeError, match="cmaes, which needs at least two numbers"):
        mix(ready, tmp_path / "cmaes", **UNIFORM, search="cmaes")
