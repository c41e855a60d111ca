"""``python -m performance.sizing_tables [FILE]``: compute the tables of docs/explanation/sizing.md with the planning code.

With FILE, replaces the text between its two ``sizing`` comments; without, prints the tables.
"""

import math
import sys
from pathlib import Path
from typing import Any

from xft_core.planning.memory import PROCESS
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import Shape, shape_of_config
from xft_core.planning.stage_plan import DataSize, Rates, StagePlan
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.reporting.tables import table
from xft_core.runtime.quantities import duration, parameters, size

START, END = "<!-- sizing: made by python -m performance.sizing_tables docs/explanation/sizing.md -->", "<!-- end of sizing -->"

# Sizes from the config.json of SmolLM2-135M, DeepSeek-Coder-1.3B and -6.7B, and Qwen2.5-Coder-3B (vocabulary of 152 k).
_LLAMA = {"model_type": "llama", "dtype": "bfloat16"}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": _LLAMA | {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "1.3B": _LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 32256},
    "3B": {
        "model_type": "qwen2", "dtype": "bfloat16", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "6.7B": _LLAMA | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32256},
}
PAPER = ["sft.gradient_checkpointing=true"]  # all other fields have the defaults, which are the paper's
VARIANTS: dict[str, list[str]] = {
    "as above": [],
    "micro batch 1": ["sft.micro_batch_size=1"],
    "no checkpointing": ["sft.gradient_checkpointing=false"],
    "4 experts, 3 active": ["upcycle.num_experts=4", "upcycle.num_experts_per_tok=3"],
    "AdamW": ["sft.optimizer=adamw"],
    "AdamW, fp32 weights": ["sft.optimizer=adamw", "sft.precision=bf16_mixed"],
}
TOKENS = 100e6
RATE = 100e12


def main() -> None:
    """Print the tables, or put them into a file."""
    if not sys.argv[1:]:
        print(markdown())
        return
    path = Path(sys.argv[1])
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{START}\n{markdown()}\n{END}{after}", encoding="utf-8")


def markdown() -> str:
    """Return the three tables."""
    shapes = {name: shape_of_config(config) for name, config in SHAPES.items()}
    return "\n\n".join([_by_stage(shapes), _by_variant(shapes), _by_time(shapes)])


def _plan(shape: Shape, changes: list[str], data: DataSize | None = None) -> dict[str, StagePlan]:
    recipe = parse(Recipe, {}, [*PAPER, *changes])
    return {stage.role: stage for stage in make_plan(recipe, shape, data)}


def _by_stage(shapes: dict[str, Shape]) -> str:
    roles = ["upcycle", "sft_baseline", "sft_moe", "mix", "merge", "generate_moe"]
    lines = [["model", "parameters", "as MoE", *roles, "disk"]]
    for name, shape in shapes.items():
        plan = _plan(shape, [])
        disk = sum(stage.kept for stage in plan.values()) + max(stage.scratch for stage in plan.values())
        lines.append([
            name, parameters(shape.parameters), parameters(shape.moe_parameters(Recipe().upcycle)),
            *(size(plan[role].memory.total + PROCESS) for role in roles), size(disk)])
    return table(lines[0], lines[1:])


def _by_variant(shapes: dict[str, Shape]) -> str:
    lines = [["sft_moe", *VARIANTS]]
    for name, shape in shapes.items():
        plans = [_plan(shape, changes)["sft_moe"] for changes in VARIANTS.values()]
        lines.append([name, *(size(stage.memory.total + PROCESS) for stage in plans)])
    return table(lines[0], lines[1:])


def _by_time(shapes: dict[str, Shape]) -> str:
    roles = ["sft_baseline", "sft_moe", "mix"]
    rates = Rates(flops=RATE, bandwidth=math.inf, disk=math.inf)
    lines = [["one epoch of 100 M tokens", *(f"{role} {unit}" for role in roles for unit in ("EFLOP", "time"))]]
    for name, shape in shapes.items():
        data = DataSize(round(TOKENS / 1024), 1, 1024.0)
        plan = _plan(shape, ["sft.epochs=1", "baseline.epochs=1", "merge.epochs=1"], data)
        cells = []
        for role in roles:
            seconds = plan[role].seconds(rates)
            assert seconds is not None
            cells += [f"{(plan[role].flops or 0) / 1e18:.2f}", duration(seconds)]
        lines.append([name, *cells])
    return table(lines[0], lines[1:])


if __name__ == "__main__":
    main()
