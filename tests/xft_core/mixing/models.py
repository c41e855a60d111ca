"""Small mixtures for the mixing tests: a dense base, an upcycled model whose experts differ, prepared data."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.factories import dense_model
from xft_core.recipe.sections import DataConfig, MergeConfig, UpcycleConfig
from xft_core.stages.configs import MixStage, PrepareStage
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle

LEARN = MergeConfig(batch_size=4, micro_batch_size=2, precision="fp32", learning_rate=0.2, epochs=2)


def tuned(directory: Path, family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **upcycled: Any) -> Path:
    """Create ``directory``/dense, and from it ``directory``/moe, changed everywhere as by tuning; return the latter."""
    dense_model(directory / "dense", family)
    weights = load_file(directory / "dense" / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, directory / "dense" / "model.safetensors",
              {"format": "pt"})
    (directory / "moe").mkdir()
    config = UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 3, "store_experts": "all"} | upcycled))
    upcycle(directory / "dense", directory / "moe", config, seed)
    weights = load_file(directory / "moe" / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(weights):
        size = 0.1 if ".mlp." in name else 0.01
        weights[name] = (weights[name] + torch.randn(weights[name].shape, generator=generator) * size).to(dtype)
    save_file(weights, directory / "moe" / "model.safetensors", {"format": "pt"})
    return directory / "moe"


def prepared(root: Path, **data: Any) -> Path:
    """Prepare ``root``/data, of 40 rows, for the model ``root``/dense."""
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(40)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6, **data)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=config))
    return root / "data"


def mix_stage(root: Path, output: Path, base: bool = False, **changes: Any) -> MixStage:
    """Return the stage that mixes ``root``/moe on ``root``/data."""
    merge = MergeConfig(**(LEARN.model_dump() | changes))
    return MixStage(
        output=output, model=str(root / "moe"), data=root / "data", merge=merge, base=str(root / "dense") if base else None)


def mixed(root: Path, output: Path, base: bool = False, **changes: Any) -> dict[str, Any]:
    """Run that stage into ``output``; return its metrics."""
    return run_stage(mix_stage(root, output, base, **changes)).manifest.metrics
