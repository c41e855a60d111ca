"""The walls: who may import whom, what a light import loads, and that the core works without the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_are_kept() -> None:
    """flows -> tasks -> xft_core; no orchestrator, tracker or object store in the core (pyproject.toml)."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.cli"])
def test_flows_are_listed_without_torch_and_mlflow(module: str) -> None:
    assert not {"torch", "transformers", "mlflow", "datasets", "boto3"} & loaded_by(f"import {module}")


@pytest.mark.parametrize("module", [
    "xft_core.recipe.sections", "xft_core.stages.configs", "xft_core.recipe.load", "xft_core.__main__"])
def test_recipes_and_stage_tables_are_light(module: str) -> None:
    assert not {"torch", "transformers", "prefect", "mlflow"} & loaded_by(f"import {module}")


def test_the_core_runs_where_orchestrator_tracker_and_store_are_not_installed(tmp_path: Path) -> None:
    """A stage through the command line, with prefect, mlflow, boto3 and evalplus made impossible to import."""
    config = tmp_path / "upcycle.yaml"
    config.write_text(f"model: demo:model\noutput: {tmp_path / 'moe'}\nupcycle: {{num_experts: 4, num_experts_per_tok: 3}}\n")
    code = (
        "import sys\n"
        "for name in ('prefect', 'mlflow', 'boto3', 'botocore', 'evalplus'): sys.modules[name] = None\n"
        "from xft_core.__main__ import main\n"
        f"sys.exit(main(['upcycle', {str(config)!r}]))")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "moe" / "manifest.json").is_file()


def test_only_models_and_the_family_table_name_a_family() -> None:
    from xft_core.families import FAMILIES

    allowed = {"families.py"}
    for path in (ROOT / "xft_core").rglob("*.py"):
        if path.name in allowed or "demo" in path.parts:
            continue
        text = path.read_text()
        for family in set(FAMILIES) - {"llama"}:
            assert f'"{family}"' not in text, f"{path} names {family}"
