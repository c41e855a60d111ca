"""Grids: every combination once, distinct names for variants, and one clear message for each mistake."""

import itertools
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xft_core.errors import RecipeError
from xft_core.recipe.grid import SEED, expand, field_labels, parse_grid
from xft_core.recipe.load import flatten
from xft_core.recipe.sections import Recipe

VALUES: dict[str, st.SearchStrategy[object]] = {
    "upcycle.num_experts": st.integers(6, 64),
    "upcycle.normalization": st.sampled_from(["xft", "renormalize", "none"]),
    "merge.method": st.sampled_from(["learned", "routing", "ewa"]),
    "merge.shared_expert_weight": st.one_of(st.none(), st.floats(0, 1)),
    "sft.learning_rate": st.floats(1e-7, 1, exclude_min=True),
    "merge.learning_rate": st.floats(1e-7, 1),
    "data.decontaminate": st.booleans(),
    "model.path": st.text("ab/c d=[]", min_size=1, max_size=50).map(lambda text: f"m{text}"),
    "evaluate.k": st.lists(st.integers(1, 9), min_size=1, max_size=3),
    "seed": st.integers(0, 999),
}


@st.composite
def axes(draw: st.DrawFn) -> dict[str, list[object]]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    return {name: draw(st.lists(VALUES[name], min_size=1, max_size=3, unique_by=repr)) for name in names}


def written(axes: dict[str, list[object]]) -> list[str]:
    return [f"{name}={yaml.safe_dump(values, default_flow_style=True, width=10**6).strip()}" for name, values in axes.items()]


@settings(max_examples=40, deadline=None)
@given(axes())
def test_every_combination_is_one_variant_with_a_name_of_its_own(axes: dict[str, list[object]]) -> None:
    variants = expand(Recipe(), written(axes))
    expected = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    assert [variant.settings for variant in variants] == expected
    assert len({variant.name for variant in variants}) == math.prod(map(len, axes.values()))
    default = flatten(Recipe())
    untouched = default.keys() - axes.keys()
    for variant in variants:
        flat = flatten(variant.recipe)
        assert {name: flat[name] for name in axes} == variant.settings
        assert all(flat[name] == default[name] for name in untouched)


@settings(max_examples=40, deadline=None)
@given(axes())
def test_groups_are_what_differs_in_the_seed_alone(axes: dict[str, list[object]]) -> None:
    variants = expand(Recipe(), written(axes))
    for one, other in itertools.combinations(variants, 2):
        same = all(one.settings[name] == other.settings[name] for name in axes if name != SEED)
        assert (one.group == other.group) == same


def test_fields_that_change_together_are_one_axis() -> None:
    grid = ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3]]", "upcycle.normalization=[xft,none]", "seed=[0,1]"]
    variants = expand(Recipe(name="demo"), grid)
    assert [variant.name for variant in variants][:3] == [
        "experts=2 active=2 norm=xft seed=0", "experts=2 active=2 norm=xft seed=1", "experts=2 active=2 norm=none seed=0"]
    assert variants[-1].group == "experts=4 active=3 norm=none"
    assert len(variants) == 8
    assert list(field_labels(grid).values()) == ["experts", "active", "norm", "seed"]
    assert next(axis.fields for axis in parse_grid(grid)) == ("upcycle.num_experts", "upcycle.num_experts_per_tok")


def test_only_seeds_are_one_group_called_by_the_recipe() -> None:
    assert {variant.group for variant in expand(Recipe(name="demo"), ["seed=[0,1]"])} == {"demo"}


def test_names_that_would_read_the_same_are_given_in_full() -> None:
    names = [variant.name for variant in expand(Recipe(), ["model.path=[/a/model,/b/model]"])]
    assert names == ["path=/a/model", "path=/b/model"]
    close = [variant.name for variant in expand(Recipe(), ["merge.learning_rate=[0.1,0.10000001]"])]
    assert close == ["learning_rate=0.1", "learning_rate=0.10000001"]
    text = [variant.name for variant in expand(Recipe(), ["model.revision=[null,'null']"])]
    assert text == ["revision=null", 'revision="null"']
    labels = field_labels(["sft.learning_rate=[1.0e-5]", "merge.learning_rate=[0.1]"])
    assert list(labels.values()) == ["sft.learning_rate", "merge.learning_rate"]


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    assert [variant.settings for variant in expand(Recipe(), ["sft.learning_rate=[1e-5]"])] == [{"sft.learning_rate": 1e-5}]


@pytest.mark.parametrize(("grid", "message"), [
    ([], "The grid is empty"),
    (["upcycle.num_experts"], "'upcycle.num_experts' is not of the form section.field="),
    (["upcycle.num_expert=[2]"], "upcycle.num_expert: there is no such field; did you mean 'upcycle.num_experts'"),
    (["num_experts=[2]"], "did you mean 'upcycle.num_experts'"),
    (["upcycle=[1]"], "upcycle is a section. Give one of its fields"),
    (["seed=3"], "the values must be a list, for example seed=[3]"),
    (["seed=[]"], "'seed=[]': the list is empty"),
    (["seed=[1"], "'seed=[1': the values are not YAML"),
    (["seed=[0]", "seed=[1]"], "seed is given twice"),
    (["seed,seed=[[0,1]]"], "seed is given twice"),
    (["seed=[0,1,0]"], "'seed=0' and 'seed=0' are the same recipe"),
    (["seed=[-1]"], "Variant 'seed=-1' cannot be used:\n  - seed: "),
    (["upcycle.num_experts=[8,4]"], "Variant 'experts=4' cannot be used:\n  - upcycle: num_experts_per_tok is 6, more"),
    (["seed,upcycle.num_experts=[[0,8],[1]]"], "each step is a list of 2 values; [1] is not"),
    (["experiment=[a,b]"], "experiment cannot vary"),
    (["seed=" + str(list(range(501)))], "501 variants, more than 500"),
])
def test_what_cannot_be_meant_is_named(grid: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        expand(Recipe(), grid)
    assert message in str(caught.value)
