"""Compare the predictions of ``xft plan`` with the peak memory of real stages on models with random weights.

    python -m performance.planning                              # prints a Markdown table; some minutes on 2 CPU cores
    python -m performance.planning "llama, 16 M | sft, dense"   # only this case
    python -m performance.planning durations                    # times instead of memory: performance/durations.py

Measures anonymous memory (RssAnon, read from /proc every 5 ms), which the process holds. Mapped checkpoint files, which the
kernel may drop, do not count. All rows have the maximum length and are nearly all response, as the plan assumes.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from performance import durations
from performance.memory import peak_memory
from xft_core.planning import memory
from xft_core.planning.shape import read_shape
from xft_core.recipe.sections import MergeConfig, SftConfig, UpcycleConfig

SEQUENCE = 128
LLAMA = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8000, "max_position_embeddings": 512, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama, 16 M": LLAMA,
    "qwen2, vocabulary 150 k": LLAMA | {
        "model_type": "qwen2", "vocab_size": 150_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2},
    "starcoder2, 31 M": LLAMA | {
        "model_type": "starcoder2", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "bos_token_id": 0, "eos_token_id": 0},
}
UPCYCLE = UpcycleConfig(num_experts=4, num_experts_per_tok=3, store_experts="all")
SFT = SftConfig(
    max_steps=2, batch_size=16, micro_batch_size=8, precision="fp32", optimizer="adamw", checkpoint_steps=1000)
MERGE = MergeConfig(max_steps=2, batch_size=16, micro_batch_size=8, precision="fp32", calibration_rows=16)


@dataclass(frozen=True)
class Case:
    """One stage to run: on the dense or the upcycled model, with these settings."""

    model: str
    stage: str
    moe: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = "MoE" if self.moe else "dense"
        return f"{self.model} | {self.stage}, {kind}" + "".join(f", {name} {value}" for name, value in self.settings.items())


CASES = [
    Case("llama, 16 M", "sft"),
    Case("llama, 16 M", "sft", settings={"optimizer": "adafactor"}),
    Case("llama, 16 M", "sft", settings={"precision": "bf16", "optimizer": "adafactor"}),
    Case("llama, 16 M", "sft", settings={"precision": "bf16_mixed"}),
    Case("llama, 16 M", "sft", settings={"gradient_checkpointing": True}),
    Case("llama, 16 M", "sft", moe=True),
    Case("llama, 16 M", "sft", moe=True, settings={"optimizer": "adafactor", "gradient_checkpointing": True}),
    Case("llama, 16 M", "sft", moe=True, settings={"precision": "bf16_mixed", "micro_batch_size": 4}),
    Case("llama, 16 M", "sft", moe=True, settings={"num_processes": 2}),
    Case("llama, 16 M", "mix", moe=True),
    Case("llama, 16 M", "mix", moe=True, settings={"method": "routing"}),
    Case("qwen2, vocabulary 150 k", "sft"),
    Case("qwen2, vocabulary 150 k", "mix", moe=True),
    Case("starcoder2, 31 M", "sft", settings={"optimizer": "adafactor"}),
    Case("starcoder2, 31 M", "sft", moe=True, settings={"optimizer": "adafactor"}),
    Case("llama, 16 M", "upcycle", settings={"router_start": "ridge"}),
    Case("llama, 16 M", "upcycle", settings={"router_start": "trained"}),
    Case("qwen2, vocabulary 150 k", "upcycle", settings={"router_start": "trained"}),
]


def main() -> None:
    """Run every case and print predicted and measured memory in MB; or compare times."""
    if sys.argv[1:2] == ["durations"]:
        durations.main(sys.argv[2:])
        return
    chosen = [case for case in CASES if str(case) in (sys.argv[1:] or map(str, CASES))]
    modules = "xft_core.stages.sft, xft_core.stages.mix, transformers.models.llama.modeling_llama"
    process = peak_memory([sys.executable, "-c", f"import {modules}"])
    print(f"A process with torch and transformers loaded: {process / 1e6:.0f} MB (assumed: {memory.PROCESS / 1e6:.0f} MB).\n")
    print("| model | stage | predicted MB | measured MB | predicted / measured |\n|---|---|---:|---:|---:|")
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for case in chosen:
            predicted, measured = measure(case, Path(directory))
            ratios.append(predicted / measured)
            print(f"| {case} | {predicted / 1e6:.0f} | {measured / 1e6:.0f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nPredicted / measured: {min(ratios):.2f} to {max(ratios):.2f}, mean {sum(ratios) / len(ratios):.2f}.")


def measure(case: Case, root: Path) -> tuple[float, float]:
    """Return predicted and measured peak memory of one case in bytes, including the process itself."""
    model, data = _model(case, root), _data(case, root)
    shape, upcycle = read_shape(_model(Case(case.model, "sft"), root) / "config.json"), UPCYCLE if case.moe else None
    fields: dict[str, Any] = {"model": str(model), "data": str(data), "output": str(root / f"out{time.monotonic_ns()}")}
    if case.stage == "sft":
        sft = SftConfig(**(SFT.model_dump() | case.settings))
        fields["sft"], predicted = sft.model_dump(), memory.training_memory(shape, upcycle, sft, SEQUENCE)
    elif case.stage == "upcycle":
        started = UpcycleConfig(**(UPCYCLE.model_dump() | {"experts_from": "checkpoints"} | case.settings))
        fields |= {"upcycle": started.model_dump(), "experts": {
            str(number): str(_expert(case, number, root)) for number in range(1, started.num_routed + 1)}}
        predicted = memory.router_start_memory(shape, started, "fp32", SEQUENCE)
    else:
        merge = MergeConfig(**(MERGE.model_dump() | case.settings))
        fields["merge"], predicted = merge.model_dump(), memory.mix_memory(shape, UPCYCLE, merge, SEQUENCE)
    config = root / "config.json"
    config.write_text(json.dumps(fields))
    return predicted.total + memory.PROCESS, peak_memory([sys.executable, "-m", "xft_core", case.stage, str(config)])


def _model(case: Case, root: Path) -> Path:
    from xft_core.stages.upcycle import upcycle

    dense = _expert(case, 0, root)
    moe = dense.with_name(f"{dense.name}-moe")
    if case.moe and not moe.is_dir():
        moe.mkdir()
        upcycle(dense, moe, UPCYCLE, seed=0)
    return moe if case.moe else dense


def _expert(case: Case, number: int, root: Path) -> Path:
    """A dense model: the case's own with number 0, another start of it with another number."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = root / f"{case.model.replace(' ', '').replace(',', '-')}-{number}"
    if not made.is_dir():
        torch.manual_seed(number)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[case.model])).save_pretrained(made)
    return made


def _data(case: Case, root: Path) -> Path:
    import torch

    from xft_core.data.rows import Row, save_rows

    data = root / f"data{MODELS[case.model]['vocab_size']}"
    if not data.is_dir():
        data.mkdir()
        generator = torch.Generator().manual_seed(0)
        for split in ("train", "held_out"):
            ids = torch.randint(0, MODELS[case.model]["vocab_size"], (16, SEQUENCE), generator=generator).tolist()
            save_rows(data / f"{split}.safetensors", [Row(row, 8) for row in ids])
    return data


if __name__ == "__main__":
    main()
