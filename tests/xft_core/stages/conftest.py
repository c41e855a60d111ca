"""Tiny models and data for stages that run in several processes."""

import json
from pathlib import Path

import pytest

from tests.factories import dense_model
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.recipe.sections import DataConfig, UpcycleConfig
from xft_core.stages.configs import PrepareStage, UpcycleStage
from xft_core.stages.run import run_stage


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create dense models (dense; tied, with tied embeddings), a MoE with so many experts that a forward pass of a few tokens
    cannot use all of them (moe), a MoE whose experts differ (apart/moe), and prepared data (data)."""
    root = tmp_path_factory.mktemp("processes")
    dense_model(root / "dense")
    dense_model(root / "tied", "qwen2")
    (root / "apart").mkdir()
    grown_apart(root / "apart")
    responses = [f"x + {i}" if i % 3 else f"def f(x):\n    return x + {i}" for i in range(24)]
    rows = [{"instruction": f"Add {i}", "response": response} for i, response in enumerate(responses)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=3)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    upcycle = UpcycleConfig(num_experts=64, num_experts_per_tok=2)
    run_stage(UpcycleStage(output=root / "moe", model=str(root / "dense"), upcycle=upcycle))
    return root
