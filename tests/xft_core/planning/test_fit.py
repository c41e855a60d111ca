"""Recipes that certainly cannot fit are refused, those that may fit are not, and the advice is correct."""

import re
from dataclasses import replace

import pytest

from tests.xft_core.planning.test_plan import DEEPSEEK_1_3B, GROUPED, LARGE, by_role, recipe
from xft_core.planning import memory
from xft_core.planning.fit import DoesNotFit, check_fits
from xft_core.planning.plan import make_plan
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe


def test_a_recipe_that_cannot_fit_is_refused_and_the_advice_makes_it_fit() -> None:
    machine = replace(LARGE, memory=64e9)
    chosen = recipe("sft.precision=fp32", "sft.optimizer=adamw")
    with pytest.raises(DoesNotFit, match=r"sft_moe cannot fit: .* 112\.5 GB of memory, but this machine has 64\.0 GB") as error:
        check_fits(chosen, DEEPSEEK_1_3B, machine)
    assert "check_fit: false" in str(error.value)
    advice = re.search(r"To make it fit: (.*) \(then", str(error.value))
    assert advice
    repaired = parse(Recipe, chosen.model_dump(), advice[1].split())
    check_fits(repaired, DEEPSEEK_1_3B, machine)
    assert max(stage.memory.total for stage in make_plan(repaired, DEEPSEEK_1_3B)) + memory.PROCESS <= machine.memory
    changes = advice[1].split()
    for change in changes:  # every change is needed
        fewer = [item for item in changes if item != change]
        plan = make_plan(parse(Recipe, chosen.model_dump(), fewer), DEEPSEEK_1_3B)
        assert max(stage.memory.total for stage in plan) + memory.PROCESS > machine.memory


def test_no_advice_where_nothing_helps() -> None:
    with pytest.raises(DoesNotFit, match="use a larger machine or a smaller model"):
        check_fits(recipe(), DEEPSEEK_1_3B, replace(LARGE, memory=4e9))


def test_only_what_is_certain_refuses() -> None:
    certain = by_role(recipe())["sft_moe"].memory.certain
    check_fits(recipe(), DEEPSEEK_1_3B, replace(LARGE, memory=certain))
    with pytest.raises(DoesNotFit):
        check_fits(recipe(), DEEPSEEK_1_3B, replace(LARGE, memory=certain - 1))


def test_an_accelerators_memory_counts_where_there_is_one() -> None:
    check_fits(recipe(), DEEPSEEK_1_3B, replace(LARGE, memory=8e9, device_memory=80e9))
    with pytest.raises(DoesNotFit, match="of accelerator memory, but this machine has 24"):
        check_fits(recipe(), DEEPSEEK_1_3B, replace(LARGE, device_memory=24e9))


def test_a_disk_that_is_too_small_is_refused_unless_the_store_has_the_files() -> None:
    small = replace(LARGE, disk=20e9)
    with pytest.raises(DoesNotFit, match=r"writes 36\.\d GB, but only 20\.0 GB are free"):
        check_fits(recipe(), DEEPSEEK_1_3B, small)
    check_fits(recipe(), DEEPSEEK_1_3B, small, in_store=20e9)


@pytest.mark.parametrize("changes", [
    (), ("upcycle.num_experts=3", "upcycle.num_experts_per_tok=2"), ("upcycle.store_experts=all",), ("sft.precision=bf16",),
    ("upcycle.num_experts=2", "upcycle.num_experts_per_tok=2", "sft.precision=bf16", "sft.optimizer=adafactor")])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_advice_on_a_disk_only_lowers(changes: tuple[str, ...], share: float) -> None:
    def written(of: Recipe) -> float:
        plan = make_plan(of, DEEPSEEK_1_3B)
        return sum(stage.kept for stage in plan) + max(stage.scratch for stage in plan)

    chosen = recipe(*changes)
    room = written(chosen) * share
    with pytest.raises(DoesNotFit, match=r"XFT_HOME on a larger disk.*check_fit: false") as error:
        check_fits(chosen, DEEPSEEK_1_3B, replace(LARGE, disk=room))
    advice = re.search(r"(or choose|even with) (.*?) (?:\(then|it is)", str(error.value))
    if advice is None:
        assert "no setting reduces this" in str(error.value)
        return
    repaired = parse(Recipe, chosen.model_dump(), advice[2].split())
    assert written(repaired) < written(chosen)
    assert repaired.upcycle.num_experts <= chosen.upcycle.num_experts
    assert (written(repaired) <= room) == (advice[1] == "or choose")


def test_advice_on_experts_in_groups_leaves_their_number_as_it_is() -> None:
    with pytest.raises(DoesNotFit) as refused:
        check_fits(recipe(*GROUPED, "sft.precision=fp32"), DEEPSEEK_1_3B, replace(LARGE, memory=4e9))
    assert "num_experts" not in str(refused.value)
    with pytest.raises(DoesNotFit) as refused:
        check_fits(recipe(*GROUPED, "sft.precision=fp32"), DEEPSEEK_1_3B, replace(LARGE, disk=4e9))
    assert "num_experts" not in str(refused.value)
