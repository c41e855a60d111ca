"""Measure the important steps on an accelerator: MoE step, mixing step, SFT tokens per second, and memory. Random weights.

    python -m performance.gpu [--shape 135M] [--layers N] [--tokens 8192] [--repeats 5]

Needs torch, transformers, and only xft_core from this project. Without an accelerator it runs on the CPU (then choose
``--shape tiny --tokens 512``), to check that it works. For the comparisons of each part, see moe_step, mixing_step and sft.
Memory is torch's peak allocation on the device in each part.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from performance import mixing_step, moe_step, sft
from performance.random_models import shape
from performance.side_by_side import print_heading, print_table
from xft_core.runtime.device import device_for_work

SEQUENCE = 1024


def main() -> None:
    """Measure in bf16 and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135M", choices=["tiny", "135M", "1.3B"])
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device, config = device_for_work(), shape(options.shape, num_hidden_layers=options.layers)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no accelerator"
    print_heading(f"{options.shape} shape, {config['num_hidden_layers']} layers, random weights, on: {name}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        mixing_step.make_models(root, config)
        sequence = min(SEQUENCE, options.tokens)
        rows = sft.random_rows(config["vocab_size"], options.rows, sequence)
        parts: list[tuple[str, list[str], Callable[[], list[list[object]]]]] = [
            ("MoE step", moe_step.COLUMNS,
             lambda: moe_step.measure(config, options.tokens, torch.bfloat16, device, options.repeats)),
            ("Mixing step", mixing_step.COLUMNS, lambda: [
                ["bf16", *mixing_step.measure(root, config, sequence, torch.bfloat16, device, options.repeats)]]),
            ("SFT, dense, fp32", sft.COLUMNS, lambda: sft.measure(
                sft.ways_of(root / "dense", rows, sequence), rows, options.repeats)),
        ]
        for title, columns, part in parts:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = part()
            memory = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device" if device.type == "cuda" else ""
            print(f"{title}{memory}\n")
            print_table(columns, found)


if __name__ == "__main__":
    main()
