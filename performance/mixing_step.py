"""Compare one optimizer step of learning the mixing coefficients with one of dense SFT on the same batch, in turns.

    python -m performance.mixing_step [--shape 135M] [--layers 2] [--sequence 512] [--repeats 3]

Both process 8 sequences, one at a time (gradient accumulation 8). Mixing: W built from 8 experts on disk, forward, backward,
dL/dW projected onto the experts, Adam on alpha (one step of xft_core.mixing.learning.learn itself). SFT: forward, backward,
Adafactor, the recipe's default. Memory: peak anonymous memory of one process for each.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

from performance.memory import peak_memory
from performance.random_models import shape, write_random
from performance.side_by_side import print_heading, print_table, side_by_side
from xft_core.data.packing import PackedRows
from xft_core.data.rows import Row, Rows, rows_of
from xft_core.mixing.learning import learn
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.recipe.sections import MergeConfig, UpcycleConfig
from xft_core.stages.upcycle import upcycle
from xft_core.store.curves import MetricsLog
from xft_core.training.response_loss import response_loss

ACCUMULATION = 8
MERGE = MergeConfig(batch_size=ACCUMULATION, micro_batch_size=1, max_steps=1)
UPCYCLE = UpcycleConfig(num_experts=8, num_experts_per_tok=6, store_experts="all")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = ["precision", "dense: seconds", "mixing", "ratio", "dense: CPU seconds", "mixing", "ratio"]


def main() -> None:
    """Measure on the CPU and print; with --only, run as one of the processes whose memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs=3, metavar=("WAY", "PRECISION", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = shape(options.shape, num_hidden_layers=options.layers, vocab_size=options.vocabulary)
    if options.only:
        way, precision, directory = options.only
        ways(Path(directory), config, options.sequence, DTYPES[precision], torch.device("cpu"))[way]()()
        return
    print_heading(
        f"Mixing step and dense SFT step, {options.shape} shape, {options.layers} layers, {ACCUMULATION} sequences of "
        f"{options.sequence} tokens")
    with tempfile.TemporaryDirectory() as scratch:
        make_models(Path(scratch), config)
        rows, memory_rows = [], []
        for precision, dtype in DTYPES.items():
            rows.append([precision, *measure(
                Path(scratch), config, options.sequence, dtype, torch.device("cpu"), options.repeats)])
            command = [sys.executable, "-m", "performance.mixing_step", *sys.argv[1:], "--only"]
            dense, mixing = (peak_memory([*command, way, precision, scratch]) / 1e6 for way in ("dense", "mixing"))
            memory_rows.append([precision, f"{dense:.0f} MB", f"{mixing:.0f} MB", mixing / dense])
        print_table(COLUMNS, rows)
        print_table(["precision", "dense: memory", "mixing", "ratio"], memory_rows)


def make_models(root: Path, config: dict[str, Any]) -> None:
    """Write ``root``/dense and, with every expert written out, ``root``/moe."""
    write_random(root / "dense", config)
    (root / "moe").mkdir()
    upcycle(root / "dense", root / "moe", UPCYCLE, 0)


def measure(
    root: Path, config: dict[str, Any], sequence: int, dtype: torch.dtype, device: torch.device, repeats: int,
) -> list[object]:
    """Return the table's cells except for the precision."""
    taken = side_by_side(
        {name: prepare() for name, prepare in ways(root, config, sequence, dtype, device).items()}, repeats)
    dense, mixing = taken["dense"], taken["mixing"]
    return [dense.seconds, mixing.seconds, mixing.seconds / dense.seconds,
            dense.cpu_seconds, mixing.cpu_seconds, mixing.cpu_seconds / dense.cpu_seconds]


def ways(
    root: Path, config: dict[str, Any], sequence: int, dtype: torch.dtype, device: torch.device,
) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return functions by name that load the model and return one optimizer step."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config["vocab_size"], (ACCUMULATION, sequence), generator=generator).tolist()
    rows = rows_of([Row(row, 1) for row in ids])

    def mixing() -> Callable[[], None]:
        mixed = MixedModel(MixtureReader(root / "moe"), dtype, device)
        return partial(_mixing_step, mixed, rows, root)

    def dense() -> Callable[[], None]:
        model = AutoModelForCausalLM.from_pretrained(root / "dense", dtype=dtype).to(device).train()
        optimizer = Adafactor(model.parameters(), lr=1e-5, scale_parameter=False, relative_step=False)
        return partial(_dense_step, model, optimizer, rows)

    return {"dense": dense, "mixing": mixing}


def _mixing_step(mixed: MixedModel, rows: Rows, root: Path) -> None:
    learn(mixed, rows, MERGE, 0, root, MetricsLog(root / "metrics.jsonl"), 0.75)


def _dense_step(model: Any, optimizer: Any, rows: Rows) -> None:
    data = PackedRows(rows, max(rows.lengths()), packing=True)
    for index in range(len(data)):
        batch = {name: tensor.to(model.device) for name, tensor in data.collate([data[index]]).items()}
        (response_loss(model, batch) / sum(rows.lengths())).backward()
    optimizer.step()
    optimizer.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
