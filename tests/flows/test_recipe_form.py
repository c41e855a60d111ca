"""The form that Prefect makes of a flow's parameters: help on every field, pick lists, defaults, nothing it cannot show."""

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
        assert "default" in field, f"{name}: no default"
        assert not {"oneOf", "discriminator", "allOf"} & field.keys(), f"{name}: the form cannot show this"
        if "anyOf" in field:
            assert [item.get("type") for item in field["anyOf"]][1:] == ["null"], name


def test_both_forms_show_the_same_recipe_in_the_order_of_the_chain() -> None:
    of_pipeline, of_compare = (parameter_schema(flow).model_dump() for flow in (pipeline, compare))
    assert of_pipeline["definitions"] == of_compare["definitions"]
    shared = [name for name in Recipe.model_fields if name != "experiment"]  # a comparison names its own by default
    for name in shared:
        one, other = ({key: value for key, value in form["properties"][name].items() if key != "position"}
                      for form in (of_pipeline, of_compare))
        assert one == other
        assert one["description"] == Recipe.model_fields[name].description
    for form in (of_pipeline, of_compare):
        in_order = sorted(form["properties"], key=lambda name: form["properties"][name]["position"])
        assert [name for name in in_order if name in shared] == shared
    assert shared[-10:] == [
        "model", "data", "baseline", "upcycle", "sft", "merge", "generate", "evaluate", "checks", "registry"]


@pytest.mark.parametrize("flow", [pipeline, compare], ids=lambda flow: str(flow.name))
def test_parameters_of_a_run_reach_the_flow(flow: Any) -> None:
    given = flow.validate_parameters({"upcycle": {"num_experts": 4, "num_experts_per_tok": 3}, "seed": 7})
    assert given["upcycle"] == UpcycleConfig(num_experts=4, num_experts_per_tok=3) and given["seed"] == 7


@pytest.mark.parametrize(("name", "number"), [
    ("UpcycleConfig.normalization", 3), ("MergeConfig.method", 12), ("SftConfig.precision", 3), ("SftConfig.optimizer", 2),
    ("DataConfig.format", 5), ("DataConfig.template", 2), ("EvaluateConfig.sandbox", 2), ("GenerateConfig.prompt_style", 4),
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
