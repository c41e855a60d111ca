"""Measure how much room for improvement a data set leaves: dense SFT only, over numbers of rows, epochs and learning rates.

    python -m performance.headroom STORE [--rows 100 200 400] [--epochs 2 4 8] [--rates 5e-4 1e-3 2e-3] [--seed 0]

Chooses the demo's recipe by docs/measurements/demo-protocol.md. It trains no Mixture-of-Experts: the choice is made before
anyone knows which method it suits. STORE keeps the results; after a kill, the same command continues.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

import torch

from performance.side_by_side import print_heading, print_table
from xft_core.demo.build import HELD_OUT_ROWS
from xft_core.demo.data import instruction_rows, write_jsonl
from xft_core.recipe.sections import DataConfig, SftConfig
from xft_core.stages.configs import PrepareStage, SftStage
from xft_core.stages.run import run_stage
from xft_core.store.results.sft import SftMetrics

FLOOR = (1500, 4.0, 1e-3)  # rows, epochs, learning rate: the model's result if data is not the limit
COLUMNS = ["rows", "epochs", "learning rate", "held-out loss", "train loss", "steps"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="directory for all results")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--epochs", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.store.mkdir(parents=True, exist_ok=True)
    held_out = options.store / "held_out.jsonl"
    write_jsonl(held_out, instruction_rows(random.Random("held out 0"), HELD_OUT_ROWS))
    points = [FLOOR, *itertools.product(options.rows, options.epochs, options.rates)]
    print_heading("Dense SFT of the demo model")
    lines = []
    for rows, epochs, rate in points:
        metrics = tuned(options.store, held_out, rows, epochs, rate, options.seed)
        losses = [f"{metrics.held_out_nll:.4f}", f"{metrics.train_loss:.4f}"]
        lines.append([rows, f"{epochs:g}", f"{rate:g}", *losses, metrics.steps])
        print(json.dumps(dict(zip(COLUMNS, lines[-1], strict=True))), flush=True)
    print_table(COLUMNS, lines)


def tuned(store: Path, held_out: Path, rows: int, epochs: float, rate: float, seed: int) -> SftMetrics:
    """Return the metrics of one dense SFT, from the store if they are there."""
    data = DataConfig(path="demo:instruct.jsonl", max_length=256, max_rows=rows, held_out_path=str(held_out))
    prepared = store / f"data-{rows}"
    run_stage(PrepareStage(output=prepared, data=data))
    sft = SftConfig(
        epochs=epochs, batch_size=4, micro_batch_size=4, learning_rate=rate, warmup_steps=10, max_grad_norm=1.0,
        optimizer="adamw", precision="fp32", balance_loss_weight=0.0, checkpoint_steps=10**6, log_steps=5)
    made = run_stage(SftStage(
        output=store / f"sft-{rows}-{epochs:g}-{rate:g}-{seed}", model="demo:model", data=prepared, sft=sft, seed=seed))
    return SftMetrics.from_flat(made.manifest.metrics)


if __name__ == "__main__":
    main()
