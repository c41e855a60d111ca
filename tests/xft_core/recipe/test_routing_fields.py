"""Routing fields: incompatible ones are refused, and a dense baseline depends on none of them."""

import pytest

from xft_core.errors import RecipeError
from xft_core.recipe.load import parse
from xft_core.recipe.sections import BaselineConfig, Recipe, SftConfig, UpcycleConfig
from xft_core.recipe.sections.sft import OF_ROUTERS


@pytest.mark.parametrize(("overrides", "message"), [
    (["upcycle.routing=top_p"], r"target_active is None: give a number from 2 to num_experts_per_tok \(6\)"),
    (["upcycle.routing=top_p", "upcycle.target_active=7"], r"target_active is 7\.0: give a number from 2 to"),
    (["upcycle.routing=top_p", "upcycle.target_active=3", "upcycle.router=random"], "the router random has no probabilities"),
    (["upcycle.shared_gate=token", "upcycle.normalization=none"], "shared_gate is token, whose weights sum to one"),
    (["upcycle.routing_temperature=0.2", "upcycle.normalization=renormalize"], "only normalization xft has a softmax of s"),
    (["upcycle.routing_temperature=0"], "greater than or equal to 0.01"),
    (["sft.balance=bias", "upcycle.router=by_example"], r"sft\.balance is bias, but upcycle\.router is by_example"),
    (["sft.diversity_weight=0.01", "upcycle.num_experts_per_tok=2"], "there is only one"),
    (["sft.router_gradient=dense", "upcycle.router=frozen"], "nothing could learn from it"),
    (["sft.score_variance_weight=0.01", "upcycle.router=hashed"], "needs a router that learns")])
def test_what_does_not_fit_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, {}, overrides)


@pytest.mark.parametrize("overrides", [
    ["upcycle.routing=top_p", "upcycle.target_active=3", "upcycle.router=frozen"],
    ["sft.router_gradient=dense", "upcycle.router=hashed", "upcycle.shared_gate=token"],
    ["upcycle.shared_expert=false", "upcycle.num_experts_per_tok=1", "sft.router_gradient=dense"],
    ["upcycle.shared_gate=token", "upcycle.normalization=renormalize"]])
def test_what_fits_is_not(overrides: list[str]) -> None:
    assert parse(Recipe, {}, overrides).upcycle.is_identity


def test_a_baseline_knows_nothing_of_routers() -> None:
    sft = SftConfig(balance="bias", balance_scope="step", router_gradient="dense", gate_budget_weight=3, diversity_weight=1,
                    score_variance_weight=1, router_entropy_weight=1, balance_loss_weight=1, balance_loss_reduction="mean")
    assert all(getattr(sft, name) != value for name, value in OF_ROUTERS.items())
    assert BaselineConfig().applied_to(sft) == BaselineConfig().applied_to(SftConfig())


def test_at_their_defaults_new_fields_are_not_recorded() -> None:
    assert set(SftConfig().recorded()) == set(SftConfig.model_fields) - SftConfig.added
    assert set(UpcycleConfig().recorded()) == set(UpcycleConfig.model_fields) - UpcycleConfig.added
    assert "router" in UpcycleConfig(router="hashed").recorded()
