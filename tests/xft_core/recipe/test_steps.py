"""The steps of a recipe: in order, complete, and valid as configurations of their stages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xft_core.planning.plan import WAYS
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import (
    BASE,
    FACTS,
    MODELS,
    Made,
    Step,
    evaluation_steps,
    pipeline_steps,
    planned_roles,
    steps_behind,
)
from xft_core.stages.configs import STAGES

FULL = ["evaluate.benchmarks=[a.jsonl,b.jsonl]", "evaluate.held_out_data=[c.jsonl]", "evaluate.lm_eval_tasks=[t]"]
NO_BASELINE = [*FULL, "baseline.enabled=false"]


def recipe(*changes: str) -> Recipe:
    return parse(Recipe, {}, list(changes))


@pytest.mark.parametrize("changes", [[], FULL, NO_BASELINE])
@pytest.mark.parametrize("steps_of", [pipeline_steps, evaluation_steps])
def test_each_step_comes_after_what_it_needs_and_can_be_configured(
    changes: list[str], steps_of: Callable[[Recipe], list[Step]],
) -> None:
    done: set[str] = set()
    for step in steps_of(recipe(*changes)):
        assert step.role not in done and set(step.needs) <= done
        done.add(step.role)
        config = STAGES[step.stage](output=Path("/out"), **step.fields("owner/base", lambda role: f"/made/{role}"))
        for name, value in step.given.items():  # the path of another step's output, never its placeholder
            if isinstance(value, Made):
                assert str(getattr(config, name)) == ("owner/base" if value == BASE else f"/made/{value.role}")


def test_every_model_is_measured_by_everything_the_recipe_lists() -> None:
    for changes, models in ((FULL, MODELS), (NO_BASELINE, ("base", "moe", "merged"))):
        steps = pipeline_steps(recipe(*changes))
        for stage, count in (("generate", 2), ("evaluate", 2), ("nll", 1), ("lm_eval", 1)):
            found = [step.role for step in steps if step.stage == stage]
            assert found == [f"{stage}_{model}_{index}" for model in models for index in range(count)]
        assert steps[-1].needs == [step.role for step in steps[:-1]]


def test_the_base_model_is_asked_in_its_own_form() -> None:
    styles = {step.model: step.given["prompt_style"] for step in pipeline_steps(recipe()) if step.stage == "generate"}
    assert styles == {"base": "completion", "sft": "magicoder", "moe": "magicoder", "merged": "magicoder"}


def test_several_files_of_one_plan_line() -> None:
    roles = planned_roles(recipe(*FULL))
    assert list(roles) == ["upcycle", "sft_moe", "sft_baseline", "mix", "merge", *(f"generate_{model}" for model in MODELS)]
    assert roles["generate_merged"].role == "generate_merged_0"


def test_the_facts_name_what_there_is() -> None:
    assert list(FACTS) == list(STAGES)
    assert {facts.planned for facts in FACTS.values() if facts.planned} <= WAYS.keys()
    assert Step("a", "report", {"artifacts": {"x": Made("x"), "y": BASE}, "z": Made("x")}).needs == ["x"]


def test_steps_behind_are_those_on_the_longest_way_to_the_end() -> None:
    behind = steps_behind(recipe(*FULL))
    assert behind["report"] == 0
    assert behind["evaluate_base_0"] == 1
    # mix, merge, generate, evaluate, report
    assert behind["sft_moe"] == 5
    assert behind["sft_moe"] > behind["sft_baseline"] > behind["evaluate_sft_0"]
    assert behind["prepare"] > behind["sft_moe"]
