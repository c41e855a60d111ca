"""The steps of rivals and of other starts: which exist, what they share with the baseline, and what is refused."""

from pathlib import Path

import pytest

from xft_core.errors import RecipeError
from xft_core.recipe.load import parse
from xft_core.recipe.sections import BaselineConfig, Recipe
from xft_core.recipe.steps import AVERAGE, FACTS, MODELS, Made, Step, model_places, pipeline_steps, planned_roles, rivals
from xft_core.stages.configs import STAGES

EVERYTHING = ["baseline.average=ema", "baseline.runs=3", "baseline.wise=[0.5,0.75]", "baseline.match=[tokens,flops]"]
STARTS = ["checkpoints", "branches"]


def recipe(*changes: str) -> Recipe:
    return parse(Recipe, {}, list(changes))


def steps(*changes: str) -> dict[str, Step]:
    return {step.role: step for step in pipeline_steps(recipe(*changes))}


@pytest.mark.parametrize("changes", [
    EVERYTHING, [*EVERYTHING, "baseline.evaluate_rivals=true"], ["sft.average=last_k", "evaluate.compare_rows=true"],
    *([f"upcycle.experts_from={start}"] for start in STARTS),
    *([f"upcycle.experts_from={start}", f"upcycle.router_start={router}"]
      for start in STARTS for router in ("ridge", "trained")),
    ["upcycle.experts_from=branches", "upcycle.branches_by=clusters", "upcycle.router_start=ridge"],
    *([f"upcycle.experts_from={start}", "upcycle.dense_share=1"] for start in STARTS)])
def test_each_step_comes_after_what_it_needs_and_can_be_configured(changes: list[str]) -> None:
    done: set[str] = set()
    for step in pipeline_steps(recipe(*changes)):
        assert step.role not in done and set(step.needs) <= done, step
        done.add(step.role)
        STAGES[step.stage](output=Path("/out"), **step.fields("owner/base", lambda role: f"/made/{role}"))
    assert {role for role, step in planned_roles(recipe(*changes)).items() if step.index is None} == {
        role for role, step in steps(*changes).items() if FACTS[step.stage].planned and step.index is None}


def test_without_rivals_the_steps_are_those_they_were() -> None:
    made = [step.role for step in pipeline_steps(recipe()) if step.index is None]
    assert made == ["prepare", "upcycle", "sft_moe", "sft_baseline", "mix", "merge", "report"]
    assert tuple(model_places(recipe())) == MODELS and rivals(recipe()) == []
    assert recipe().recorded()["baseline"] == {"enabled": True, "epochs": None, "learning_rate": None, "warmup_steps": None}
    assert not {"average", "mode", "compare_rows"} & {name for section in recipe().recorded().values()
                                                      if isinstance(section, dict) for name in section}


def test_each_budget_has_its_average_its_soup_and_the_way_back_of_each() -> None:
    found = rivals(recipe(*EVERYTHING))
    of_one = [*(f"_wise_{share}" for share in ("0_5", "0_75"))]
    assert sorted(found) == sorted(
        f"{name}{kind}{end}" for name in ("sft", "sft_flops") for kind in ("", "_average", "_soup") for end in ("", *of_one)
        if f"{name}{kind}{end}" != "sft")
    places = model_places(recipe(*EVERYTHING))
    assert list(places)[-2:] == ["moe", "merged"] and places["sft_average"] == Made("sft_baseline", AVERAGE)


def test_a_soup_has_the_baseline_as_its_first_run_and_other_seeds() -> None:
    found = steps("baseline.runs=3", "seed=5", "baseline.average=last_k")
    soup = found["sft_soup"].given
    assert list(soup["models"]) == ["sft_baseline", "sft_run_1", "sft_run_2"] and sum(soup["weights"].values()) == 1
    assert [found[role].given["seed"] for role in soup["models"]] == [5, 6, 7]
    assert found["sft_run_1"].given["sft"].average == "none"
    # With equal work, each run gets a third of it. The baseline itself is another training.
    shared = steps("baseline.runs=3", "baseline.match=flops")
    assert list(shared["sft_soup"].given["models"]) == ["sft_run_0", "sft_run_1", "sft_run_2"]
    assert shared["sft_run_0"].given["match"].runs == 3 and shared["sft_baseline"].given["match"].runs == 1


def test_wise_is_base_and_tuned_by_their_shares() -> None:
    given = steps("baseline.wise=0.7")["sft_wise_0_7"].given
    assert given["weights"] == {"base": pytest.approx(0.3), "sft": 0.7}
    assert given["models"] == {"base": Made("base"), "sft": Made("sft_baseline")}


def test_every_models_rows_are_measured_with_the_trainings_it_is_made_of() -> None:
    found = steps("baseline.runs=2", "baseline.wise=0.5", "upcycle.experts_from=checkpoints")
    trained = {role.removeprefix("row_losses_"): set(step.given["trained_by"])
               for role, step in found.items() if step.stage == "row_losses"}
    assert trained["base"] == set() and trained["sft_wise_0_5"] == {"sft_baseline"}
    assert trained["sft_soup"] == trained["sft_soup_wise_0_5"] == {"sft_baseline", "sft_run_1"}
    assert trained["moe"] == {"sft_start", "sft_moe"} and trained["merged"] == {"sft_start", "sft_moe", "mix"}
    started = steps("baseline.runs=2", "upcycle.experts_from=checkpoints", "upcycle.router_start=trained")
    assert set(started["row_losses_moe"].given["trained_by"]) == {"sft_start", "upcycle", "sft_moe"}
    assert not any(step.stage == "row_losses" for step in steps().values())
    assert "row_losses_merged" in steps("evaluate.compare_rows=true", "baseline.enabled=false")


def test_rivals_answer_only_when_asked() -> None:
    answering = {step.model for step in steps(*EVERYTHING).values() if step.stage == "generate"}
    assert answering == set(MODELS)
    asked = {step.model for step in steps(*EVERYTHING, "baseline.evaluate_rivals=true").values() if step.stage == "generate"}
    assert asked == {*MODELS, *rivals(recipe(*EVERYTHING))}


def test_an_average_of_the_moe_is_what_is_mixed_merged_and_asked() -> None:
    found = steps("sft.average=ema")
    averaged = Made("sft_moe", AVERAGE)
    assert [found[role].given["model"] for role in ("mix", "merge", "generate_moe_0")] == [averaged] * 3
    assert found["sft_baseline"].given["sft"].average == "none"


def test_dense_starts_take_their_share_of_the_epochs() -> None:
    found = steps("upcycle.experts_from=checkpoints", "upcycle.dense_share=0.25", "sft.epochs=4")
    assert (found["sft_start"].given["sft"].epochs, found["sft_moe"].given["sft"].epochs) == (1, 3)
    assert found["sft_start"].given["snapshots"] == 7 and len(found["upcycle"].given["experts"]) == 7
    branches = steps("upcycle.experts_from=branches", "upcycle.dense_share=1")
    assert "sft_moe" not in branches and branches["mix"].given["model"] == Made("upcycle")
    assert branches["upcycle"].given["model"] == Made("branches_mean")
    assert [branches[f"sft_branch_{number}"].given["part"] for number in (1, 7)] == [[1, 7], [7, 7]]


def of_domains(*names: str, experts: int, **more: object) -> Recipe:
    sources = [{"path": f"{number}.jsonl", "domain": name, "weight": 0 if name == "unused" else 1}
               for number, name in enumerate(names)]
    upcycle = {"experts_from": "branches", "branches_by": "domain", "num_experts": experts, "num_experts_per_tok": 2}
    return parse(Recipe, {"data": {"sources": sources} | more, "upcycle": upcycle})


def test_branches_of_domains_share_out_the_sources() -> None:
    found = {step.role: step for step in pipeline_steps(of_domains("code", "law", "code", "unused", "math", experts=3))}
    sources = [found[f"sft_branch_{number}"].given["sources"] for number in (1, 2)]
    assert sources == [[0, 2, 4], [1]] and "part" not in found["sft_branch_1"].given
    assert parse(Recipe, {}, ["upcycle.experts_from=branches"]).recorded()["upcycle"].get("branches_by") is None


def test_the_router_starts_from_the_rows_that_each_branch_was_tuned_on() -> None:
    clusters = steps("upcycle.experts_from=branches", "upcycle.branches_by=clusters", "upcycle.router_start=ridge")
    assert clusters["cluster_rows"].given["clusters"] == 7 and "cluster_rows" in clusters["sft_branch_3"].needs
    given = clusters["upcycle"].given
    assert {"prepare", "cluster_rows"} < set(clusters["upcycle"].needs) and given["rows_of_experts"]["3"] == {"cluster": 2}
    assert clusters["row_losses_merged"].given["clusters"] == Made("cluster_rows")
    checkpoints = steps("upcycle.experts_from=checkpoints", "upcycle.router_start=ridge")["upcycle"]
    assert "prepare" in checkpoints.needs and "rows_of_experts" not in checkpoints.given
    assert "data" not in steps("upcycle.experts_from=checkpoints")["upcycle"].given


@pytest.mark.parametrize("more", [{}, {"leave_out": "law"}])
def test_branches_of_domains_need_a_domain_each(more: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"data\.sources has . domains to train on, fewer than the 3 routed experts"):
        of_domains("code", "law", "unused", experts=4, **more)


@pytest.mark.parametrize(("changes", "message"), [
    (["upcycle.branches_by=domain"], "which has no branches: set experts_from to branches"),
    (["upcycle.router_start=ridge"], "choose checkpoints or branches"),
    (["upcycle.router_start=trained"], "choose checkpoints or branches"),
    (["upcycle.branches_by=domain", "upcycle.experts_from=branches"], "data.sources has 0 domains"),
    (["baseline.epochs=2", "baseline.match=flops"], "leave epochs empty"),
    (["baseline.enabled=false", "baseline.runs=2"], "enabled is false: turn it on"),
    (["baseline.wise=[0.5,0.5]"], "wise names 0.5 twice"),
    (["baseline.wise=3"], "baseline.wise"),
    (["baseline.match=[]"], "baseline.match"),
    (["upcycle.experts_from=branches", "sft.max_steps=5"], "leave max_steps empty"),
    (["sft.expert_averaging=0.01", "upcycle.num_experts=2", "upcycle.num_experts_per_tok=2"],
     "there is only one routed expert"),
])
def test_what_makes_no_sense_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(*changes)


def test_one_value_stands_for_a_list_of_it() -> None:
    assert BaselineConfig.model_validate({"wise": 0.7, "match": "flops"}) == BaselineConfig(wise=[0.7], match=["flops"])


def test_a_baseline_has_nothing_of_experts() -> None:
    sft = recipe("sft.expert_averaging=0.01", "sft.average=ema").sft
    assert BaselineConfig().applied_to(sft) == BaselineConfig().applied_to(Recipe().sft)
