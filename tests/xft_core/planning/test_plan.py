"""The certain part of a plan is exact, and its work grows with the data."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from xft_core.planning import memory
from xft_core.planning.estimate import estimate
from xft_core.planning.fit import DoesNotFit, check_fits
from xft_core.planning.machine import Machine
from xft_core.planning.plan import make_plan, training_steps
from xft_core.planning.rates import _Probe
from xft_core.planning.shape import Shape
from xft_core.planning.stage_plan import DataSize, Rates, StagePlan
from xft_core.planning.text import summary, table
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

DEEPSEEK_1_3B = Shape(2048, 5504, 24, 32256, 2048, 2048, gated=True, tied=False)
LARGE = Machine(memory=1e12, device_memory=None, disk=1e13)


def recipe(*overrides: str) -> Recipe:
    return parse(Recipe, {}, list(overrides))


def by_role(chosen: Recipe, **given: Any) -> dict[str, StagePlan]:
    return {stage.role: stage for stage in make_plan(chosen, DEEPSEEK_1_3B, **given)}


@pytest.mark.parametrize(("precision", "optimizer", "per_parameter"), [
    ("bf16", "adafactor", 4), ("bf16", "adamw", 8), ("fp32", "adafactor", 8), ("fp32", "adamw", 16),
    ("bf16_mixed", "adamw", 16)])
def test_what_is_certain_is_bytes_per_parameter(precision: str, optimizer: str, per_parameter: int) -> None:
    stages = by_role(recipe(f"sft.precision={precision}", f"sft.optimizer={optimizer}"))
    chosen = Recipe().upcycle
    for role, parameters in (
            ("sft_moe", DEEPSEEK_1_3B.moe_parameters(chosen)), ("sft_baseline", DEEPSEEK_1_3B.parameters)):
        certain = stages[role].memory.certain
        assert certain == pytest.approx(parameters * per_parameter, rel=0.01 if optimizer == "adafactor" else 1e-9)
        assert stages[role].memory.total > certain


def test_each_setting_that_saves_memory_saves_some() -> None:
    def peak(*overrides: str) -> float:
        return by_role(recipe(*overrides))["sft_moe"].memory.total

    base = peak()
    assert peak("sft.gradient_checkpointing=true") < base
    assert peak("sft.micro_batch_size=1") < base
    assert peak("data.max_length=512") < base
    assert peak("upcycle.num_experts_per_tok=3") < base
    assert peak("sft.optimizer=adamw") > base
    assert peak("sft.precision=fp32") > base
    assert by_role(recipe("merge.method=routing"))["mix"].memory.weights > by_role(recipe())["mix"].memory.weights


def test_processes_share_the_training_state_and_where_there_is_no_accelerator_the_memory() -> None:
    one, four = (by_role(recipe(*changes), data=DataSize(6400, 100, 1024.0))["sft_moe"]
                 for changes in ((), ("sft.num_processes=4",)))
    # A quarter, except for the seven routed experts, of which it has two.
    routed = DEEPSEEK_1_3B.num_layers * 7 * DEEPSEEK_1_3B.ffn
    rest = DEEPSEEK_1_3B.moe_parameters(Recipe().upcycle) - routed
    assert four.memory.weights == pytest.approx(2 * (rest / 4 + routed * 2 / 7))
    assert four.memory.total < one.memory.total
    card = replace(LARGE, device_memory=80e9)
    assert four.peak(card) == four.memory.total + memory.PROCESS
    assert four.peak(LARGE) == 4 * four.peak(card) > one.peak(LARGE)
    assert "4 in sft_moe: the table shows the memory of one; they share" in summary([four], LARGE, {})[-1]
    assert "processes" not in "".join(summary([one], LARGE, {}))
    assert (four.kept, four.scratch, four.flops) == (one.kept, one.scratch, one.flops)
    rates = Rates(flops=1e12, bandwidth=1e10, disk=1e30)
    alone = one.seconds(rates)
    assert alone is not None
    assert four.seconds(replace(rates, accelerated=True)) == pytest.approx(alone / 4)
    assert four.seconds(rates) == one.seconds(rates)
    with pytest.raises(DoesNotFit, match="sft_moe cannot fit"):
        check_fits(recipe("sft.optimizer=adamw"), DEEPSEEK_1_3B, replace(LARGE, device_memory=40e9))
    check_fits(recipe("sft.optimizer=adamw", "sft.num_processes=4"), DEEPSEEK_1_3B, replace(LARGE, device_memory=40e9))


def test_steps_follow_data_epochs_and_limits() -> None:
    data = DataSize(1000, 100, 256.0)
    assert training_steps(recipe("sft.epochs=2").sft, 1024, data) == (2 * 4, 1024.0)  # 250 sequences in batches of 64
    assert training_steps(recipe("sft.epochs=2", "sft.packing=false").sft, 1024, data) == (2 * 16, 256.0)
    assert training_steps(recipe("sft.epochs=2", "sft.max_steps=3").sft, 1024, data)[0] == 3


def test_work_grows_with_the_data_and_is_unknown_without() -> None:
    rates = Rates(flops=1e12, bandwidth=1e10, disk=1e9)
    stages = by_role(recipe(), data=DataSize(6400, 100, 1024.0), problems=10)
    tokens = 4 * 6400 * 1024
    held_out = 2 * 100 * 1024
    per_token = DEEPSEEK_1_3B.forward_flops(1024, Recipe().upcycle)
    assert stages["sft_moe"].flops == pytest.approx((3 * tokens + held_out) * per_token)
    checkpointed = by_role(recipe("sft.gradient_checkpointing=true"), data=DataSize(6400, 100, 1024.0))["sft_moe"]
    assert checkpointed.flops == pytest.approx((4 * tokens + held_out) * per_token)
    dense = by_role(recipe("sft.router_gradient=dense"), data=DataSize(6400, 100, 1024.0))
    all_experts = tokens * 2 * DEEPSEEK_1_3B.num_layers * 7 * DEEPSEEK_1_3B.ffn
    assert dense["sft_moe"].flops == pytest.approx((3 * tokens + held_out) * per_token + all_experts)
    assert dense["sft_baseline"].flops == stages["sft_baseline"].flops
    moe, baseline, mix = (stages[role].seconds(rates) or 0 for role in ("sft_moe", "sft_baseline", "mix"))
    assert moe > baseline > mix > 0
    assert stages["generate_moe"].seconds(rates) == pytest.approx(512 * stages["generate_moe"].memory.weights / 1e10, rel=0.5)
    unknown = by_role(recipe())
    assert unknown["sft_moe"].seconds(rates) is None and unknown["upcycle"].seconds(rates) is not None


LEARNED = ("merge.method=learned", "merge.headroom=false")


@pytest.mark.parametrize(("less", "more"), [
    (("merge.method=uniform",), LEARNED),
    (("merge.method=uniform",), ("merge.method=routing",)),
    (("merge.method=uniform",), ("merge.method=fisher",)),
    (("merge.method=uniform",), ("merge.method=regmean",)),
    (("merge.method=uniform",), ("merge.method=uniform", "merge.delta_scale=0.7")),
    (("merge.method=uniform",), ("merge.method=uniform", "merge.search=golden")),
    (LEARNED, (*LEARNED, "merge.objective=distill")),
    (LEARNED, (*LEARNED, "merge.headroom=true")),
    (LEARNED, (*LEARNED, "merge.uniform_penalty=0.1", "merge.cross_validation=true")),
    (LEARNED, (*LEARNED, "merge.epochs=9")),
    ((*LEARNED, "merge.rows=reserved", "data.reserved_rows=10"), LEARNED),
    ((*LEARNED, "merge.max_steps=1"), LEARNED)])
def test_what_mixing_does_more_costs_more(less: tuple[str, ...], more: tuple[str, ...]) -> None:
    data = DataSize(6400, 100, 1024.0)
    one, other = (by_role(recipe(*changes), data=data)["mix"].flops for changes in (less, more))
    assert one is not None and other is not None and 0 < one < other
    assert by_role(recipe(*more))["mix"].flops is None  # unknown without the amount of data


def test_every_further_step_has_a_plan() -> None:
    data = DataSize(6400, 100, 1024.0)

    def plan(*overrides: str) -> dict[str, StagePlan]:
        return by_role(recipe("data.reserved_rows=10", *overrides), data=data)

    compared = plan("evaluate.compare_rows=true")
    for model in ("base", "sft", "moe", "merged"):
        measured = compared[f"row_losses_{model}"]
        experts = Recipe().upcycle if model == "moe" else None
        assert measured.flops == pytest.approx(100 * 1024 * DEEPSEEK_1_3B.forward_flops(1024, experts))
        assert measured.memory.total > 0
    choosing = plan("sft.merge_at=best", "sft.merge_checkpoints=3")["choose_checkpoint"]
    assert choosing.kept == choosing.written == DEEPSEEK_1_3B.moe_parameters(Recipe().upcycle) * 2
    assert choosing.flops == pytest.approx(3 * 100 * 1024 * DEEPSEEK_1_3B.forward_flops(1024))
    greedy, learned = (plan(f"merge.ensemble={kind}")["ensemble"] for kind in ("greedy", "learned"))
    assert greedy.flops and learned.flops and learned.memory.total > greedy.memory.total
    preferring = plan("dpo.benchmark=mbpp+")["dpo"]
    assert preferring.flops is None and preferring.memory.total > preferring.kept > 0


def test_training_the_start_of_the_router_needs_the_mixture_and_one_row() -> None:
    random, ridge, trained = (
        by_role(recipe("sft.precision=bf16", "upcycle.experts_from=checkpoints", f"upcycle.router_start={start}"))
        for start in ("random", "ridge", "trained"))
    mixture = DEEPSEEK_1_3B.moe_parameters(Recipe().upcycle) * 2
    assert random["upcycle"].memory.total == 0 < ridge["upcycle"].memory.certain < mixture
    assert mixture < trained["upcycle"].memory.certain < 1.01 * mixture
    assert trained["upcycle"].memory.certain < trained["upcycle"].memory.total < trained["sft_moe"].memory.total
    assert trained["upcycle"].kept == ridge["upcycle"].kept == mixture  # different experts are all stored
    assert trained["upcycle"].written == 2 * ridge["upcycle"].written


def test_the_table_has_every_stage_and_says_what_is_not_known() -> None:
    plan, rates = make_plan(recipe(), DEEPSEEK_1_3B), Rates(1e12, 1e10, 1e9)
    times = {stage.role: estimate(stage, rates) for stage in plan}
    text = table(plan, times)
    assert all(stage.role in text for stage in plan)
    assert "?" in text and "probe" in text and "stages with ?" in "\n".join(summary(plan, LARGE, times))
    assert "0.0 GB" not in text and "0.00" not in text


LOW_RANK = ("upcycle.expert_rank=4",)
GROUPED = ("upcycle.expert_rank=4", "upcycle.num_experts=7", "upcycle.num_experts_per_tok=3", "upcycle.groups=2")


@pytest.mark.parametrize("overrides", [LOW_RANK, GROUPED])
def test_low_rank_experts_need_about_what_the_dense_model_does(overrides: tuple[str, ...]) -> None:
    data = DataSize(1000, 100, 300.0)
    full, stages = (by_role(recipe(*changes), data=data) for changes in ((), overrides))
    dense, low_rank = stages["sft_baseline"], stages["sft_moe"]
    assert dense.memory.certain < low_rank.memory.certain < 1.1 * dense.memory.certain < full["sft_moe"].memory.certain
    assert low_rank.memory.total < dense.memory.total * 1.1
    assert dense.flops and low_rank.flops and dense.flops < low_rank.flops < 1.2 * dense.flops
    parameters = DEEPSEEK_1_3B.moe_parameters(recipe(*overrides).upcycle)
    assert stages["upcycle"].kept == parameters * DEEPSEEK_1_3B.stored_bytes
    adapter = by_role(recipe(*overrides, "merge.export_adapter=true"))["merge"].kept
    assert 2 * stages["merge"].kept < adapter < 2.2 * stages["merge"].kept


@pytest.mark.parametrize("overrides", [LOW_RANK, GROUPED])
def test_the_part_of_a_process_is_no_less_than_an_even_share(overrides: tuple[str, ...]) -> None:
    chosen = recipe(*overrides).upcycle
    whole = DEEPSEEK_1_3B.moe_parameters(chosen)
    assert memory.largest_part(DEEPSEEK_1_3B, chosen, 1) == whole
    assert whole / 4 < memory.largest_part(DEEPSEEK_1_3B, chosen, 4) < whole / 4 * 1.1


@pytest.mark.parametrize("overrides", [LOW_RANK, GROUPED])
def test_a_probe_of_low_rank_experts_trains_them(overrides: tuple[str, ...]) -> None:
    layer = _Probe(Shape(32, 48, 1, 64, 32, 16, gated=True, tied=True), torch.device("cpu"))._layer(
        "fp32", recipe(*overrides).upcycle)
    layer(torch.randn(2, 5, 32, requires_grad=True)).square().sum().backward()
    names = {name for name, parameter in layer.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert {"low_rank.up_a", "low_rank.down_b", "shared.up.weight"} <= names
