"""Measure the cost of writing a training checkpoint and resuming from it, and its checksums' share (sha256 of every file).

    python -m performance.checkpoints [--shape 135M] [--repeats 5]

A model with random fp32 weights trains one step on a few tokens with each optimizer, so that the optimizer has its state. Then
its checkpoint is written (over the one before) and sealed, checked and loaded, in turns. Files come from the page cache.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from performance.random_models import SHAPES, shape
from performance.side_by_side import Taken, print_heading, print_table, side_by_side
from xft_core.data.packing import PackedRows
from xft_core.data.rows import Row, rows_of
from xft_core.recipe.sections import ChecksConfig, SftConfig
from xft_core.store import checkpoints
from xft_core.store.curves import MetricsLog
from xft_core.training.trainer import XftTrainer

COLUMNS = ["optimizer", "MB", "what", "seconds", "sums", "share %", "CPU seconds", "sums", "share %"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    print_heading(f"A checkpoint of a dense {options.shape} model in fp32, medians of {options.repeats}")
    rows: list[list[object]] = []
    for optimizer in ("adafactor", "adamw"):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            rows += measure(options.shape, optimizer, options.repeats, Path(directory))
    print_table(COLUMNS, rows)


def measure(name: str, optimizer: str, repeats: int, directory: Path) -> list[list[object]]:
    """Return the table's rows."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape(name)), dtype=torch.float32)
    sft = SftConfig(optimizer=optimizer, max_steps=1, batch_size=1, micro_batch_size=1, precision="fp32", epochs=1,
                    checkpoint_steps=1000, log_steps=1)
    data = PackedRows(rows_of([Row(list(range(2, 18)), 4)]), 16, packing=False)
    trainer = XftTrainer(model, data, sft, 0, directory, MetricsLog(directory / "metrics.jsonl"), ChecksConfig())
    trainer.train()
    checkpoint = directory / "checkpoint-1"

    def load() -> None:
        trainer._load_from_checkpoint(str(checkpoint), trainer.model)
        trainer._load_optimizer_and_scheduler(str(checkpoint))
        trainer._load_rng_state(str(checkpoint))

    taken = side_by_side({
        "write": lambda: trainer._save_checkpoint(trainer.model, None), "seal": lambda: checkpoints.seal(checkpoint),
        "check": lambda: checkpoints.check(checkpoint), "load": load}, repeats)
    size = round(sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6)
    return [[optimizer, size, "saving", *_parts(taken["write"], taken["seal"])],
            [optimizer, size, "going on", *_parts(taken["load"], taken["check"])]]


def _parts(work: Taken, sums: Taken) -> list[object]:
    """Return the total seconds of both, the seconds of the checksums and their share, by the clock and by CPU time."""
    found: list[object] = []
    for rest, part in ((work.seconds, sums.seconds), (work.cpu_seconds, sums.cpu_seconds)):
        found += [rest + part, part, round(100 * part / (rest + part))]
    return found


if __name__ == "__main__":
    main()
