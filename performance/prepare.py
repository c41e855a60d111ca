"""Measure how many rows of instruction data per second the prepare stage processes, and its memory.

    python -m performance.prepare [--rows 1000000] [--long-megabytes 20] [DATA.json ...]

Uses a generated file of different rows with 20 to 60 tokens of code-like text, one with a single long row among short ones, and
any given files. The tokenizer and the benchmark for decontamination are the demo's.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from performance.side_by_side import print_heading, print_table

TARGET = 20_000  # rows a second on two cores
NAMES = ("count", "total", "value", "items", "index", "word", "left", "right", "result", "first")
CONFIG = "data: {{path: {path}, max_length: 1024}}\nbenchmarks: ['demo:benchmark.jsonl']\noutput: {output}\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, help="more instruction data to measure")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--long-megabytes", type=int, default=20, help="size of the long row; 0 for none")
    options = parser.parse_args()
    print_heading("Preparing data")
    with tempfile.TemporaryDirectory() as directory:
        files = {}
        for rows in (options.rows // 10, options.rows):
            files[f"{rows:,} short rows"] = write_rows(Path(directory) / f"{rows}.jsonl", rows)
        if options.long_megabytes:
            files[f"a row of {options.long_megabytes} MB, 10 short"] = write_rows(
                Path(directory) / "long.jsonl", 10, options.long_megabytes)
        files |= {path.name: path for path in options.data}
        table = [[name, *measure(path, Path(directory) / f"out{number}")] for number, (name, path) in enumerate(files.items())]
    print_table(["data", "seconds", "CPU seconds", f"rows/s (target {TARGET:,})", "peak memory MB"], table)


def write_rows(path: Path, rows: int, long_megabytes: int = 0) -> Path:
    """Write JSON lines of so many different rows, and one more with a response of that length."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            a, b, c = rng.sample(NAMES, 3)
            instruction = f"Add {number} to the {a} of {b}."
            response = "".join(f"{name} = {a}({b}, {rng.randrange(100)})\n" for name in (c, a, b)[:rng.randint(1, 3)])
            stream.write(json.dumps({"instruction": instruction, "response": response}) + "\n")
        if long_megabytes:
            response = "".join(f"{rng.choice(NAMES)} = {number}\n" for number in range(long_megabytes * 60_000))
            stream.write(json.dumps({"instruction": "Go on.", "response": response}) + "\n")
    return path


def measure(path: Path, output: Path) -> list[object]:
    """Return seconds, CPU seconds, rows per second by the stage's own time, and peak anonymous memory of its processes in
    MB."""
    config = output.with_suffix(".yaml")
    config.write_text(CONFIG.format(path=path, output=output), encoding="utf-8")
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "xft_core", "prepare", str(config)], stderr=subprocess.DEVNULL) as process:
        watched, peak, cpu = psutil.Process(process.pid), [0], {}

        def watch() -> None:
            while process.poll() is None:
                try:
                    every = [watched, *watched.children(recursive=True)]
                    peak[0] = max(peak[0], sum(anonymous(one.pid) for one in every))
                    for one in every:
                        times = one.cpu_times()
                        cpu[one.pid] = times.user + times.system
                except (psutil.Error, OSError):
                    pass  # one of them has just ended
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        if process.wait():
            raise SystemExit(f"prepare failed on {path.name}")
        watcher.join()
    manifest = json.loads((output / "manifest.json").read_text())
    return [
        round(time.monotonic() - started, 2), round(sum(cpu.values()), 2),
        round(manifest["metrics"]["rows_read"] / manifest["seconds"]), round(peak[0] / 1e6)]


def anonymous(process: int) -> int:
    """Return a process's anonymous memory in bytes, with shared memory divided among its users; 0 if it has ended."""
    shares = Path(f"/proc/{process}/smaps_rollup").read_text()
    return next((int(line.split()[1]) * 1024 for line in shares.splitlines() if line.startswith("Pss_Anon")), 0)


if __name__ == "__main__":
    main()
