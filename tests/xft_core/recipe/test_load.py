"""Recipes: unknown fields are refused with the nearest known one, wrong values with the field's name."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from xft_core.errors import RecipeError
from xft_core.recipe.load import flatten, load_recipe, parse
from xft_core.recipe.sections import BaselineConfig, Recipe, SftConfig

RECIPES = sorted(Path("deployments/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load_recipe(Path("deployments/recipes/deepseek_coder_1_3b.yaml"))
    assert (recipe.upcycle.num_experts, recipe.upcycle.num_experts_per_tok, recipe.upcycle.normalization) == (8, 6, "xft")
    assert (recipe.sft.epochs, recipe.sft.batch_size, recipe.sft.learning_rate, recipe.sft.warmup_steps) == (4, 64, 5e-5, 500)
    baseline = recipe.baseline.applied_to(recipe.sft)
    assert (baseline.epochs, baseline.warmup_steps, baseline.learning_rate) == (5, 625, 5e-5)
    assert (recipe.merge.shared_expert_weight, recipe.data.max_length, recipe.generate.max_new_tokens) == (0.75, 1024, 512)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("upcycle.num_expert", 4, "did you mean 'num_experts'"),
    ("sft.learning-rate", 4, "did you mean 'learning_rate'"),
    ("upcylce", {}, "did you mean 'upcycle'"),
    ("merge.qqqq", 1, "known: method, shared_expert_weight"),
    ("upcycle.num_experts", 65, "upcycle.num_experts: Input should be less than or equal to 64 (it is 65)"),
    ("upcycle.num_experts", 4, "num_experts_per_tok is 6, more than num_experts (4)"),
    ("upcycle.normalization", "softmax",
     "upcycle.normalization: Input should be 'xft', 'renormalize', 'none', 'granite' or 'qwen2_moe'"),
    ("sft.micro_batch_size", 7, "micro_batch_size (7) does not divide batch_size (64)"),
    ("generate.num_samples", 5, "temperature"),
    ("name", "a b", "name:"),
])
def test_wrong_fields_and_values_are_named(field: str, value: object, message: str) -> None:
    section, _, name = field.rpartition(".")
    values = {section: {name: value}} if section else {name: value}
    with pytest.raises(RecipeError) as caught:
        parse(Recipe, values)
    assert message in str(caught.value)


def test_shared_only_without_a_shared_expert_is_refused() -> None:
    with pytest.raises(RecipeError, match="there is no shared expert"):
        parse(Recipe, {"merge": {"method": "shared_only"}, "upcycle": {"shared_expert": False}})


def test_overrides_are_read_as_yaml_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\nupcycle: {num_experts: 4, num_experts_per_tok: 3}\n")
    recipe = load_recipe(path, ["upcycle.num_experts=6", "merge.shared_expert_weight=null", "evaluate.k=[1, 10]"])
    assert recipe.upcycle.num_experts == 6 and recipe.upcycle.num_experts_per_tok == 3
    assert recipe.merge.shared_expert_weight is None and recipe.evaluate.k == [1, 10]
    with pytest.raises(RecipeError, match="not of the form"):
        load_recipe(path, ["nonsense"])
    with pytest.raises(RecipeError, match="did you mean 'num_experts'"):
        load_recipe(path, ["upcycle.num_exprts=6"])


@pytest.mark.parametrize(("content", "message"), [
    ("a: [", "not usable YAML"), ("- 1", "contains a list"), (b"\xff\xfe\x00", "not usable YAML")])
def test_files_that_are_no_recipe(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
    with pytest.raises(RecipeError, match="no file"):
        load_recipe(tmp_path / "absent.yaml")


def test_every_field_has_a_help_text_and_recipes_are_immutable() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no help text"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    check(Recipe)
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "other"  # type: ignore[misc]


def test_flat_names_are_those_of_overrides() -> None:
    flat = flatten(Recipe())
    assert flat["upcycle.num_experts"] == 8 and flat["merge.method"] == "learned" and flat["seed"] == 0


def test_a_baseline_does_not_depend_on_router_settings() -> None:
    plain, balanced = SftConfig(), SftConfig(balance_loss_weight=0.5, balance_loss_reduction="mean")
    assert BaselineConfig().applied_to(plain) == BaselineConfig().applied_to(balanced)
