"""Compare merging an 8-expert model to dense with reading every expert once, and with mergekit's linear merge if given.

    python -m performance.merge [--shape 1.3B] [--layers 24] [--repeats 3] [--directory DIR] [--mergekit VENV/bin] [--cold]

Alternates between reading all experts' bytes into memory once, and merging and writing the result. The files are in the
kernel's cache if they fit; with --cold they always come from the disk. mergekit merges eight dense models of the same size (one
model under eight names). Memory is the anonymous memory of an entire process (performance/memory.py). Everything is removed at
the end.
"""

import argparse
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import yaml

from performance.memory import peak_memory
from performance.random_models import checkpoint_parser, shape, write_random
from performance.side_by_side import print_heading, print_table, run_command, side_by_side
from xft_core.mixing.mixture import MixtureReader
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.merge import merge
from xft_core.stages.upcycle import upcycle

EXPERTS = 8


def main() -> None:
    """Measure and print; with --only, run as the process whose memory is measured."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--only", nargs=2, type=Path, metavar=("MOE", "TARGET"), help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help="drop the experts from the kernel's cache before every turn")
    options = parser.parse_args()
    if options.only:
        merge_into(*options.only)
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        measure(options, Path(scratch))


def measure(options: argparse.Namespace, root: Path) -> None:
    """Measure, with all files below ``root``."""
    config = shape(options.shape, num_hidden_layers=options.layers)
    size = write_random(root / "dense", config)
    moe, target = root / "moe", root / "out"
    moe.mkdir()
    upcycle(root / "dense", moe, UpcycleConfig(num_experts=EXPERTS, store_experts="all"), 0)
    layers = config["num_hidden_layers"]
    print_heading(f"Merging {EXPERTS} experts, {options.shape} shape, {layers} layers, dense {size / 1e9:.2f} GB in bf16")
    ways = {"reading every expert once": partial(read_experts, moe), "merge": partial(merge_into, moe, target)}
    if options.mergekit:
        linear = root / "linear.yaml"
        linear.write_text(yaml.safe_dump({
            "merge_method": "linear", "dtype": "bfloat16",
            "models": [
                {"model": str(_named(root, number)), "parameters": {"weight": 1 / EXPERTS}} for number in range(EXPERTS)],
        }), encoding="utf-8")
        command = [str(options.mergekit / "mergekit-yaml"), str(linear), str(target), "--quiet"]
        ways["mergekit linear"] = partial(run_command, command)
    else:
        shutil.rmtree(root / "dense")

    def between() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if options.cold:
            drop_from_cache(moe)

    taken = side_by_side(ways, options.repeats, warm_up=False, between=between)
    shutil.rmtree(target, ignore_errors=True)
    memory = {"merge": peak_memory([sys.executable, "-m", "performance.merge", "--only", str(moe), str(target)])}
    if options.mergekit:
        shutil.rmtree(target)
        memory["mergekit linear"] = peak_memory(command)
    reading = taken["reading every expert once"]
    print_table(
        ["way", "seconds", "/ reading", "CPU seconds", "/ reading", "peak memory"],
        [[name, item.seconds, item.seconds / reading.seconds, item.cpu_seconds, item.cpu_seconds / reading.cpu_seconds,
          f"{memory[name] / 1e6:.0f} MB" if name in memory else ""] for name, item in taken.items()])
    largest = 2 * config["hidden_size"] * config["intermediate_size"]
    process = peak_memory([sys.executable, "-c", "import performance.merge"])
    print(f"A tensor of one expert is {largest / 1e6:.0f} MB; the process with its imports alone {process / 1e6:.0f} MB.")


def drop_from_cache(directory: Path) -> None:
    """Drop a directory's files from the kernel's cache, after writing unwritten data to disk."""
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_experts(moe: Path) -> None:
    """Read every expert's bytes into one buffer."""
    with MixtureReader(moe) as mixture:
        for layer in range(mixture.num_layers):
            for tensor in mixture.expert_tensors(layer):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
                for expert in range(EXPERTS):
                    buffer.copy_(tensor.of_expert(expert))


def merge_into(moe: Path, target: Path) -> None:
    """Merge with uneven coefficients, so that no expert is skipped."""
    with MixtureReader(moe) as mixture:
        share_N = torch.arange(1, EXPERTS + 1, dtype=torch.float64)
        weight_LN = (share_N / share_N.sum()).expand(mixture.num_layers, EXPERTS)
    target.mkdir()
    merge(moe, target, weight_LN)


def _named(root: Path, number: int) -> Path:
    name = root / f"dense-{number}"
    name.symlink_to(root / "dense")
    return name


if __name__ == "__main__":
    main()
