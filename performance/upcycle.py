"""Compare upcycling to 8 experts with ``cp`` of the bytes written, and with mergekit-moe if given.

    python -m performance.upcycle [--shape 1.3B] [--layers 24] [--repeats 3] [--directory DIR] [--mergekit VENV/bin]

Time ends when the last byte is written in the sense of ``cp`` (it may still be in the kernel's cache). Both run in turns.
Memory is the anonymous memory of the entire process (performance/memory.py). Needs free disk of 12 times the dense model's
size. Everything is removed at the end.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml

from performance.memory import peak_memory
from performance.random_models import checkpoint_parser, shape, write_random
from performance.side_by_side import print_heading, print_table, run_command, side_by_side
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle


def main() -> None:
    """Measure and print."""
    parser = checkpoint_parser(__doc__)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        measure(options, Path(scratch))


def measure(options: argparse.Namespace, root: Path) -> None:
    """Measure, with all files below ``root``."""
    config = shape(options.shape, num_hidden_layers=options.layers)
    dense, target = root / "dense", root / "out"
    size = write_random(dense, config)
    print_heading(
        f"Upcycling to 8 experts, {options.shape} shape, {config['num_hidden_layers']} layers, {size / 1e9:.2f} GB in bf16")
    rows: list[list[object]] = []
    for store in ("once", "all"):
        settings = UpcycleConfig(store_experts=store)
        written = root / f"written-{store}"
        written.mkdir()
        upcycle(dense, written, settings, 0)
        copied = dense if store == "once" else written  # "once" should cost no more than copying the dense model
        taken = side_by_side(
            {"cp": partial(_copy, copied, target), "upcycle": partial(upcycle, dense, target, settings, 0)},
            options.repeats, between=partial(_empty, target), warm_up=False)
        _empty(target)
        memory = peak_memory(_stage_command(root, dense, settings))
        shutil.rmtree(root / "stage")
        rows.append([
            f"store_experts: {store}", f"{_size(written) / 1e9:.2f} GB", taken["upcycle"].seconds, taken["cp"].seconds,
            taken["upcycle"].seconds / taken["cp"].seconds, taken["upcycle"].cpu_seconds, taken["cp"].cpu_seconds,
            f"{memory / 1e6:.0f} MB"])
        shutil.rmtree(written)
    if options.mergekit:
        command = _mergekit_command(options.mergekit, root, dense)
        taken = side_by_side({"mergekit-moe": partial(run_command, command)}, 1, warm_up=False)
        written_bytes = _size(root / "mergekit")
        shutil.rmtree(root / "mergekit")
        memory = peak_memory(command)
        rows.append([
            "mergekit-moe", f"{written_bytes / 1e9:.2f} GB", taken["mergekit-moe"].seconds, "", "",
            taken["mergekit-moe"].cpu_seconds, "", f"{memory / 1e6:.0f} MB"])
    print_table(
        ["way", "written", "seconds", "cp: seconds", "ratio", "CPU seconds", "cp: CPU seconds", "peak memory"], rows)
    process = peak_memory([sys.executable, "-c", "import xft_core.stages.upcycle"])
    largest = 2 * max(config["vocab_size"], config["intermediate_size"]) * config["hidden_size"]
    print(
        f"Largest tensor of the dense model {largest / 1e6:.0f} MB; the process with its imports alone {process / 1e6:.0f} MB.")


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", "--reflink=never", f"{source}/.", target], check=True)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _stage_command(root: Path, dense: Path, settings: UpcycleConfig) -> list[str]:
    config = root / "stage.json"
    fields = {"model": str(dense), "output": str(root / "stage"), "upcycle": settings.model_dump()}
    config.write_text(json.dumps(fields), encoding="utf-8")
    return [sys.executable, "-m", "xft_core", "upcycle", str(config)]


def _mergekit_command(bin_directory: Path, root: Path, dense: Path) -> list[str]:
    """Use the same base eight times with random gates, which is mergekit's closest equivalent to upcycling."""
    config = root / "mergekit.yaml"
    config.write_text(yaml.safe_dump({
        "base_model": str(dense), "gate_mode": "random", "architecture": "mixtral", "dtype": "bfloat16",
        "experts": [{"source_model": str(dense), "positive_prompts": [f"expert {number}"]} for number in range(8)]}))
    return [str(bin_directory / "mergekit-moe"), "--trust-remote-code", str(config), str(root / "mergekit")]


if __name__ == "__main__":
    main()
