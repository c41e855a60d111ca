"""prefect.yaml, checked with Prefect's own models. They drop unknown keys, so everything in the file must survive reading."""

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel, RawScheduleConfig
from prefect.client.schemas.schedules import construct_schedule
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import is_valid_schema, validate

REPOSITORY = Path(__file__).parents[2]
CONTENT: dict[str, Any] = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = CONTENT["deployments"]

DEPLOYMENT_KEYS = {
    "name", "description", "tags", "entrypoint", "parameters", "enforce_parameter_schema", "concurrency_limit", "work_pool"}


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Flow)
    return found


def read_by_prefect(content: dict[str, Any]) -> dict[str, Any]:
    return PrefectYamlModel.model_validate(content).model_dump(by_alias=True, exclude_unset=True)


def test_prefect_reads_all_of_the_file() -> None:
    given = {name: value for name, value in CONTENT.items() if name != "definitions"}  # only for anchors, as Prefect documents
    assert read_by_prefect(given) == given
    shipped = {"pipeline", "demo", "compare", "evaluate", "nightly", "watch", "publish"}
    assert shipped <= {item["name"] for item in DEPLOYMENTS}


@pytest.mark.parametrize("place", [(), (0,), (0, "work_pool"), (0, "concurrency_limit")])
def test_a_key_that_prefect_does_not_know_is_noticed(place: tuple[Any, ...]) -> None:
    content = copy.deepcopy({name: value for name, value in CONTENT.items() if name != "definitions"})
    changed: Any = content["deployments"] if place else content
    for step in place:
        changed = changed[step]
    changed["conurrency"] = 1
    assert read_by_prefect(content) != content


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda item: str(item["name"]))
def test_a_deployment_is_whole_and_its_parameters_fit_the_flow(deployment: dict[str, Any]) -> None:
    assert deployment.keys() >= DEPLOYMENT_KEYS
    assert deployment["concurrency_limit"].keys() == {"limit", "collision_strategy"}
    flow = flow_of(deployment)
    schema = parameter_schema(flow).model_dump()
    is_valid_schema(schema)  # raises if it is not
    assert deployment["parameters"].keys() <= schema["properties"].keys()  # Prefect accepts unknown ones
    assert not validate(deployment["parameters"], schema)
    flow.validate_parameters(deployment["parameters"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda item: str(item["name"]))
def test_a_recipe_file_that_is_named_can_be_used(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.pipeline import chosen_recipe

    monkeypatch.chdir(REPOSITORY)
    if deployment["entrypoint"] == "flows.pipeline.pipeline":
        expected = "demo" if "recipe_file" in deployment["parameters"] else deployment["parameters"]["name"]
        assert chosen_recipe(**deployment["parameters"]).name == expected


def test_the_comparison_that_is_offered_is_the_demo_by_experts_normalization_and_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.compare import comparison_recipe
    from xft_core.recipe.grid import expand

    monkeypatch.chdir(REPOSITORY)
    parameters = next(item["parameters"] for item in DEPLOYMENTS if item["name"] == "compare")
    variants = expand(comparison_recipe(parameters["recipe_file"]), parameters["grid"])
    assert len(variants) == 12
    assert {variant.recipe.experiment for variant in variants} == {"demo-comparison"}
    assert {variant.recipe.upcycle.num_experts for variant in variants} == {2, 4, 8}


def test_schedules_have_a_time_zone_and_a_name() -> None:
    schedules = [item for deployment in DEPLOYMENTS for item in deployment.get("schedules", [])]
    assert schedules
    for item in schedules:
        checked = RawScheduleConfig.model_validate(item)
        assert checked.timezone and checked.slug
        assert checked.active is True
        construct_schedule(cron=checked.cron, timezone=checked.timezone)


def test_a_schedule_may_have_parameters_of_its_own() -> None:
    nightly = next(item for item in DEPLOYMENTS if item["name"] == "nightly")
    own = next(item["parameters"] for item in nightly["schedules"] if "parameters" in item)
    schema = parameter_schema(flow_of(nightly)).model_dump()
    assert not validate(nightly["parameters"] | own, schema)
