"""The walls: who may import whom, what a light import loads, and that the core works without the other packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_are_kept() -> None:
    """Check flows -> tasks -> xft_core, and no orchestrator, tracker or object store in the core (pyproject.toml)."""
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
    """Run a stage through the command line, with prefect, mlflow, boto3 and evalplus made impossible to import."""
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


def test_only_the_tables_of_families_name_a_family() -> None:
    from xft_core.families import FAMILIES

    # Dense families, families that stock mixtures become, and llama.cpp's pre-tokenizers, some named like families.
    allowed = {"families.py", "siblings.py", "vocabulary.py"}
    for path in (ROOT / "xft_core").rglob("*.py"):
        if path.name in allowed or "demo" in path.parts:
            continue
        text = path.read_text()
        for family in set(FAMILIES) - {"llama"}:
            assert f'"{family}"' not in text, f"{path} names {family}"


def literal_keys(path: Path) -> list[str]:
    """Return the places where a module reads a metric by a literal name: ``metrics["steps"]``, ``x.metrics.get("steps")``,
    ``point["metrics"]["loss"]``."""
    def is_metrics(node: ast.expr) -> bool:
        return ((isinstance(node, ast.Name) and node.id == "metrics")
                or (isinstance(node, ast.Attribute) and node.attr == "metrics")
                or (isinstance(node, ast.Subscript) and is_text(node.slice) and ast.literal_eval(node.slice) == "metrics"))

    def is_text(node: ast.expr) -> bool:
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        by_index = isinstance(node, ast.Subscript) and is_metrics(node.value) and is_text(node.slice)
        by_call = (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "metric")
                   and (node.func.attr == "metric" or is_metrics(node.func.value)) and any(map(is_text, node.args)))
        if by_index or by_call:
            found.append(f"{path.name}:{node.lineno}")  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("package", ["xft_core", "tasks", "flows"])
def test_no_module_takes_a_number_out_of_metrics_by_a_literal_name(package: str) -> None:
    room = ROOT / "xft_core" / "store" / "results"
    found = [place for path in (ROOT / package).rglob("*.py") if room not in path.parents for place in literal_keys(path)]
    assert not found, f"{found}: use the types of xft_core/store/results"


@pytest.mark.parametrize("text", [
    'metrics["steps"]', 'manifest.metrics["steps"]', 'manifest.metrics.get("steps", 0)', 'evidence.metric("mix", "steps")',
    'point["metrics"]["loss"]'])
def test_a_literal_name_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"value = {text}\n")
    assert literal_keys(tmp_path / "module.py") == ["module.py:1"]
