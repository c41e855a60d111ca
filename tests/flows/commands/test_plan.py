"""``xft plan`` shows what a recipe needs. It and ``xft run`` refuse a recipe that cannot fit, before any work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from performance.sizing_tables import END, SHAPES, START, markdown
from tasks.execution.durations import threads_of_a_stage
from tasks.preflight import check_fit
from tests.flows.conftest import REPOSITORY
from tests.flows.test_cli import RecipeFile, xft
from xft_core.demo import DEMO_DIR
from xft_core.planning.fit import DoesNotFit
from xft_core.planning.history import Timing, likeness, remember
from xft_core.planning.machine import machine_name
from xft_core.planning.shape import read_shape
from xft_core.recipe.load import load_recipe, parse
from xft_core.recipe.sections import Recipe

LARGE = ["upcycle.num_experts=64", "sft.precision=fp32", "sft.optimizer=adamw"]


def model_directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SHAPES["6.7B"]))
    return path


def test_the_plan_of_a_recipe(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = xft("plan", str(recipe_file()), "--flops", "0.1", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(role in done.stdout for role in ("upcycle", "sft_moe", "mix", "merge", "generate_base", "generate_moe"))
    assert "sft_baseline" not in done.stdout and "?" not in done.stdout
    assert "--flops" in done.stdout and "0.00 G" not in done.stdout and "lower bound" not in done.stdout
    assert not any(tmp_path.glob("*.db"))


@pytest.mark.slow
def test_a_plan_says_what_each_time_rests_on(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = xft("plan", str(recipe_file()), home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["sft_moe"].endswith("probe") and "one after the other" in lines["time"]
    assert "2.27 M parameters" in done.stdout or "2.26 M parameters" in done.stdout
    recipe, shape = load_recipe(recipe_file(), []), read_shape(DEMO_DIR / "model" / "config.json")
    like = likeness("sft_moe", recipe, shape, machine_name(), threads_of_a_stage())
    remember(tmp_path / "rates.json", Timing(likeness=like, work=1e12, seconds=60, ended=0))
    done = xft("plan", str(recipe_file()), home=tmp_path)
    assert [line.split("  ")[-1].strip() for line in done.stdout.splitlines() if line.startswith("sft_moe")] == ["earlier run"]


@pytest.mark.parametrize(("option", "value"), [
    ("--rows", "0"), ("--rows", "-3"), ("--tokens-per-row", "nan"), ("--flops", "0")])
def test_an_amount_that_cannot_be_is_refused(recipe_file: RecipeFile, tmp_path: Path, option: str, value: str) -> None:
    done = xft("plan", str(recipe_file()), option, value, home=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "invalid number above 0 value" in done.stderr


@pytest.mark.slow
def test_a_plan_for_another_machine_and_what_to_change(recipe_file: RecipeFile, tmp_path: Path) -> None:
    config = model_directory(tmp_path / "model") / "config.json"
    arguments: tuple[str, ...] = ("plan", str(recipe_file(model={"path": "owner/model"})), "--flops", "100")
    refused = xft(*arguments, home=tmp_path)
    assert refused.returncode == 2 and "is not in the Hub's cache" in refused.stderr
    arguments += ("--model-config", str(config), "--set", "upcycle.num_experts=8")
    refused = xft(*arguments, "--device-memory", "80", home=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "error: sft_moe cannot fit" in refused.stderr and "To make it fit: " not in refused.stdout
    tight = xft(*arguments, "--device-memory", "320", "--disk", "1000", "--set", "sft.micro_batch_size=4", home=tmp_path)
    assert tight.returncode == 0, tight.stderr


def test_a_hub_models_config_is_read_from_the_cache_alone(recipe_file: RecipeFile, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(SHAPES["135M"]))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    code = "from xft_core.planning.shape import find_config; print(find_config('owner/model'), find_config('owner/model@v2'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True)
    assert done.stdout.split() == [str(snapshot / "config.json"), "None"], done.stderr


def test_a_run_that_cannot_fit_is_refused_before_anything_starts(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(model={"path": str(model_directory(tmp_path / "model"))})
    done = xft("run", str(path), *(part for item in LARGE for part in ("--set", item)), home=tmp_path)
    assert done.returncode == 2
    assert "error: sft_moe cannot fit" in done.stderr and "check_fit: false" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_check_fit_off_goes_on_with_a_warning(tmp_path: Path) -> None:
    model = str(model_directory(tmp_path / "model"))
    with pytest.raises(DoesNotFit):
        check_fit(parse(Recipe, {}, LARGE), model)
    assert "sft_moe may not fit" in (check_fit(parse(Recipe, {}, [*LARGE, "check_fit=false"]), model) or "")
    assert check_fit(Recipe(), "demo:model") is None
    (tmp_path / "model" / "config.json").write_text("{}")
    assert check_fit(Recipe(), model) is None and check_fit(Recipe(), "owner/not-in-the-cache") is None


def test_the_check_needs_no_torch() -> None:
    code = "import sys, tasks.preflight; print([name for name in ('torch', 'transformers', 'prefect') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_sizing_page_is_what_the_code_says() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "sizing.md").read_text(encoding="utf-8")
    assert page.partition(START)[2].partition(END)[0].strip() == markdown()
