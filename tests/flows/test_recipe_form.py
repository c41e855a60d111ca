"""The form that Prefect builds from a flow's parameters: help on every field, pick lists, defaults, nothing it cannot show."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.compare import compare
from flows.evaluate import evaluate_model, short_name
from flows.pipeline import chosen_recipe, pipeline
from xft_core.errors import RecipeError
from xft_core.recipe.load import flatten
from xft_core.recipe.sections import MergeConfig, Recipe, UpcycleConfig

FLOWS = [pipeline, evaluate_model, compare]
SCHEMA: dict[str, Any] = parameter_schema(pipeline).model_dump()


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from schema["properties"].items()
    for section in schema["definitions"].values():
        yield from ((f"{section['title']}.{name}", field) for name, field in section["properties"].items())


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: str(flow.name))
def test_every_field_has_help_and_a_default_and_can_be_shown(flow: Any) -> None:
    for name, field in fields(parameter_schema(flow).model_dump()):
        assert field.get("description"), f"{name}: no help"
        assert "default" in field or may_be_empty(name, field), f"{name}: no default"
        # For "int or null" the page offers a choice between a field and the word None.
        assert not {"oneOf", "discriminator", "allOf", "anyOf"} & field.keys(), f"{name}: the form cannot show this"


def may_be_empty(name: str, field: dict[str, Any]) -> bool:
    """Return whether the schema allows an empty field, which Prefect takes for null: one type, and no default."""
    section, _, inner = name.partition(".")
    schema = {"type": "object", "properties": {inner or section: field}}
    return not validate({inner or section: None}, schema)


@pytest.mark.parametrize(("parameters", "said"), [
    ({"upcycle": {"num_experts": 4, "num_experts_per_tok": 6}}, "6 is greater than the maximum of 4"),
    ({"upcycle": {"shared_expert": True, "num_experts_per_tok": 1}}, "1 is less than the minimum of 2"),
    ({"upcycle": {"mode": "fusion", "shared_expert": True}}, "False was expected"),
    ({"upcycle": {"routing": "top_p", "target_active": None}}, "None is not of type 'number'"),
    ({"merge": {"method": "uniform", "shared_expert_weight": None}}, "None is not of type 'number'"),
    ({"merge": {"method": "ties", "delta_scale": 0.5}}, "1 was expected"),
    ({"merge": {"method": "ewa", "search": "golden"}}, "'none' was expected"),
    ({"generate": {"num_samples": 4, "temperature": 0.0}}, "0.0 is less than or equal to the minimum of 0")])
def test_a_wrong_combination_is_refused_before_there_is_a_run(parameters: dict[str, Any], said: str) -> None:
    """The section's own validators, which check more, refuse it too."""
    errors = validate(parameters, SCHEMA)
    assert [error.message for error in errors] == [said]
    with pytest.raises(RecipeError):
        chosen_recipe(**parameters)


def test_the_form_can_be_submitted_as_it_is_found() -> None:
    found = {name: field["default"] for name, field in SCHEMA["properties"].items()}
    assert not validate(json.loads(json.dumps(found)), SCHEMA)


def test_the_forms_rules_refuse_nothing_that_is_valid() -> None:
    for fields in (
        {"upcycle": {"num_experts": 64, "num_experts_per_tok": 64}}, {"upcycle": {"num_experts": 4, "num_experts_per_tok": 4}},
        {"upcycle": {"shared_expert": False, "num_experts_per_tok": 1}}, {"merge": {"shared_expert_weight": None}},
        {"upcycle": {"routing": "top_p", "target_active": 3}}, {"merge": {"delta_scale": None}},
        {"merge": {"method": "ties"}}, {"generate": {"num_samples": 4, "temperature": 0.5}}, {"sft": {"max_steps": None}},
        {"merge": {"method": "uniform", "search": "golden"}},
    ):
        whole = chosen_recipe(**fields).model_dump(mode="json")
        assert not validate(whole, SCHEMA)


def test_essentials_count_over_the_recipe_file_and_overrides_over_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "merge": {"shared_expert_weight": 0.25}, "sft": {"epochs": 2}}))
    given = {"upcycle_num_experts": 4, "upcycle_num_experts_per_tok": 3, "sft_epochs": 3, "evaluate_benchmarks": ["humaneval"]}
    found = chosen_recipe(str(path), ["sft.epochs=5"], given)
    assert (found.upcycle.num_experts, found.sft.epochs, found.merge.shared_expert_weight) == (4, 5, 0.25)
    assert found.evaluate.benchmarks == ["humaneval"]
    with pytest.raises(RecipeError, match="num_expert: there is no such field"):
        chosen_recipe("", [], {"upcycle.num_expert": 4})
    assert len(SCHEMA["definitions"]["Essentials"]["properties"]) == 12


def test_both_forms_show_the_same_recipe_in_the_order_of_the_chain() -> None:
    of_pipeline, of_compare = (parameter_schema(flow).model_dump() for flow in (pipeline, compare))
    assert of_pipeline["definitions"] == of_compare["definitions"]
    shared = [name for name in Recipe.model_fields if name != "experiment"]  # a comparison has its own default name
    for name in shared:
        one, other = ({key: value for key, value in form["properties"][name].items() if key != "position"}
                      for form in (of_pipeline, of_compare))
        assert one == other
        assert one["description"] == Recipe.model_fields[name].description
    for form in (of_pipeline, of_compare):
        in_order = sorted(form["properties"], key=lambda name: form["properties"][name]["position"])
        assert [name for name in in_order if name in shared] == shared
        assert in_order[:3] == ["recipe_file", "essentials", "overrides"]
    assert shared[-12:] == [
        "model", "data", "baseline", "upcycle", "sft", "merge", "dpo", "generate", "evaluate", "checks", "export", "registry"]


@pytest.mark.parametrize("flow", [pipeline, compare], ids=lambda flow: str(flow.name))
def test_parameters_of_a_run_reach_the_flow(flow: Any) -> None:
    given = flow.validate_parameters({"upcycle": {"num_experts": 4, "num_experts_per_tok": 3}, "seed": 7})
    assert given["upcycle"] == UpcycleConfig(num_experts=4, num_experts_per_tok=3) and given["seed"] == 7


@pytest.mark.parametrize(("name", "number"), [
    ("UpcycleConfig.normalization", 5), ("MergeConfig.method", 12), ("SftConfig.precision", 3), ("SftConfig.optimizer", 2),
    ("DataConfig.format", 9), ("DataConfig.template", 2), ("EvaluateConfig.sandbox", 2), ("GenerateConfig.prompt_style", 4),
    ("GenerateConfig.backend", 2)])
def test_choices_are_pick_lists(name: str, number: int) -> None:
    assert len(dict(fields(SCHEMA))[name]["enum"]) == number


@pytest.mark.parametrize(("parameters", "field"), [
    ({"upcycle": {"num_experts": 1}}, "num_experts"), ({"merge": {"method": "mean"}}, "method"),
    ({"sft": {"learning_rat": 1}}, "sft"), ({"seed": -1}, "seed"), ({"name": "no spaces"}, "name")])
def test_a_wrong_value_is_refused_by_the_form(parameters: dict[str, Any], field: str) -> None:
    errors = validate(parameters, SCHEMA)
    assert errors
    assert field in errors[0].json_path


def test_the_fields_of_the_form_are_the_recipe_and_overrides_apply() -> None:
    found = chosen_recipe("", ["merge.method=uniform"], upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3))
    assert (found.upcycle.num_experts, found.upcycle.num_experts_per_tok, found.merge.method) == (4, 3, "uniform")
    same = chosen_recipe("", ["merge.epochs=2"], merge=MergeConfig(shared_expert_weight=0.5))
    assert (same.merge.shared_expert_weight, same.merge.epochs) == (0.5, 2)


def test_a_recipe_file_wins_over_the_form(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "merge": {"shared_expert_weight": 0.25}}))
    found = chosen_recipe(str(path), ["seed=3"], name="form", merge=MergeConfig(method="uniform"))
    expected = Recipe(name="mine", seed=3, merge=MergeConfig(shared_expert_weight=0.25))
    assert flatten(found) == flatten(expected)


def test_what_is_wrong_in_overrides_or_file_is_named() -> None:
    with pytest.raises(RecipeError, match="did you mean 'method'"):
        chosen_recipe("", ["merge.metod=uniform"])
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        chosen_recipe("none.yaml")


@pytest.mark.parametrize(("model", "name"), [
    ("demo:model", "demo-model"), ("owner/Model-1.3b", "Model-1.3b"), ("/models/a b/", "a-b"), ("...", "model")])
def test_short_names(model: str, name: str) -> None:
    assert short_name(model) == name
