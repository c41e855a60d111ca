"""``python -m xft_core``: every stage alone. A mistake gives a message and exit status 2, never a stack trace."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.factories import dense_model
from xft_core.stages.configs import STAGES


def xft_core(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xft_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write(path: Path, **fields: object) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(fields, default=str))))
    return path


def test_help_names_every_stage_and_every_field() -> None:
    text = xft_core("--help").stdout
    assert all(stage in text for stage in [*STAGES, "inspect", "import-reference"])
    shown = xft_core("sft", "--help").stdout
    assert all(field in shown for field in ("model", "data", "seed", "output", "sft.learning_rate: ", "checks.dead_experts: "))


@pytest.mark.slow
def test_the_stages_one_by_one(tmp_path: Path) -> None:
    """Run the chain by hand, as a user without an orchestrator would."""
    dense_model(tmp_path / "base")
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": tmp_path / "rows.jsonl", "max_length": 160, "held_out_rows": 5, "decontaminate": False}
    sft = {"epochs": 1, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "learning_rate": 0.005}
    merge = {"method": "uniform", "precision": "fp32"}
    base, moe, tuned = tmp_path / "base", tmp_path / "moe", tmp_path / "tuned"
    configs: dict[str, dict[str, Any]] = {
        "prepare": {"output": tmp_path / "data", "model": base, "data": data},
        "upcycle": {"output": moe, "model": base, "upcycle": {"num_experts": 4, "num_experts_per_tok": 3}},
        "sft": {"output": tuned, "model": moe, "data": tmp_path / "data", "sft": sft},
        "mix": {"output": tmp_path / "mix", "model": tuned, "data": tmp_path / "data", "merge": merge},
        "merge": {"output": tmp_path / "merged", "model": tuned, "coefficients": tmp_path / "mix", "data": tmp_path / "data"},
    }
    for stage, fields in configs.items():
        result = xft_core(stage, write(tmp_path / f"{stage}.yaml", **fields))
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["reused"] is False
    again = xft_core("merge", tmp_path / "merge.yaml")
    assert json.loads(again.stdout)["reused"] is True
    assert "4 per layer, 3 active per token" in xft_core("inspect", tmp_path / "moe").stdout


@pytest.mark.parametrize(("stage", "fields", "message"), [
    ("upcycle", {"model": "absent/model/dir"}, "no model directory"),
    ("upcycle", {"model": "demo:model", "upcycle": {"num_experts": 4, "num_experts_per_tok": 5}}, "more than num_experts"),
    ("upcycle", {"model": "demo:model", "upcycle": {"num_expert": 4}}, "did you mean 'num_experts'"),
    ("upcycle", {}, "output: this field must be given"),
    ("prepare", {"data": {"path": "absent.jsonl"}}, "no file 'absent.jsonl'"),
    ("evaluate", {"samples": "absent", "benchmark": "demo:benchmark.jsonl"}, "absent"),
    ("generate", {"model": "demo:model", "benchmark": "absent.jsonl"}, "no file 'absent.jsonl'"),
    ("report", {"artifacts": {}, "recipe": {"nme": "a"}}, "did you mean 'name'"),
])
def test_a_mistake_is_a_message(stage: str, fields: dict[str, object], message: str, tmp_path: Path) -> None:
    if fields:
        fields = {"output": str(tmp_path / "out"), **fields}
    result = xft_core(stage, write(tmp_path / "c.yaml", **fields))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr and result.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        result = xft_core("upcycle", path)
        assert result.returncode == 2 and "no file" in result.stderr and "Traceback" not in result.stderr
    assert xft_core("inspect", tmp_path).returncode == 2
