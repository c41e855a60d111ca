"""What a report says about mixing with each option."""

from typing import Any

import pytest

from xft_core.recipe.checks import mixing_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.reporting.run.comparison import Mixing, MixingOptions
from xft_core.reporting.run.findings import _option_sentences
from xft_core.store.results.mix import MixMetrics

NOTHING: dict[str, Any] = dict.fromkeys(MixingOptions.model_fields) | {
    "delta_scale_learned": False, "kept_uniform": False, "predicted": False, "granularity": "layer"}


def sentences(**options: Any) -> str:
    found = MixingOptions(**(NOTHING | options))
    mixing = Mixing(
        method="learned", held_out_nll_merged=0.5, held_out_nll_uniform=0.51, movement_max=0.2, movement_mean=0.1, layers=[],
        options=found)
    return " ".join(_option_sentences(mixing, found))


@pytest.mark.parametrize(("options", "expected"), [
    ({"headroom": 0.001, "headroom_threshold": 0.002, "kept_uniform": True}, "there was nothing to learn, so uniform"),
    ({"headroom": 0.02, "headroom_threshold": 0.002}, "there was something to learn"),
    ({"headroom": 0.001, "headroom_threshold": 0.002, "best_probe": "gamma 0.7", "best_probe_gain": 0.03,
      "best_probe_learnable": False}, "0.0300 nats at gamma 0.7, which this recipe does not learn"),
    ({"kept_uniform": True}, "no lower than that of uniform mixing"),
    ({"uniform_penalty": 0.01}, "chose a uniform_penalty of 0.01"),
    ({"delta_scale_mean": 0.7, "held_out_nll_unscaled": 0.6}, "by 0.700 (given): held-out loss 0.5000 against 0.6000"),
    ({"delta_scale_mean": 0.7, "held_out_nll_unscaled": 0.6, "delta_scale_learned": True}, "by 0.700 (learned)")])
def test_the_options_are_told(options: dict[str, Any], expected: str) -> None:
    assert expected in sentences(**options)


@pytest.mark.parametrize(("numbers", "count"), [
    ({}, 1), ({"kept_uniform": 1}, 0), ({"delta_scale_moved": 0.3}, 0), ({"delta_scale_moved": 0.001}, 1),
    ({"delta_scale_mean": 0.7, "held_out_nll_unscaled": 1.2}, 1), ({"predicted": 1}, 0),
    ({"predicted": 1, "held_out_nll_merged": 1.0}, 1)])
def test_only_what_should_have_moved_is_said_not_to_have_moved(numbers: dict[str, Any], count: int) -> None:
    metrics = MixMetrics.from_flat({"held_out_nll_merged": 0.9, "held_out_nll_uniform": 0.9, "movement_max": 0.0} | numbers)
    assert len(mixing_findings(metrics, "learned", ChecksConfig())) == count
