"""Helpers for the benchmarks: measure ways to do one thing side by side in one run, and describe the machine."""

import gc
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from xft_core.reporting.tables import table


@dataclass(frozen=True)
class Taken:
    """Medians over the repeats: ``seconds`` by the clock, ``cpu_seconds`` of this process and its children, all threads.

    On a busy machine, compare ``cpu_seconds``.
    """

    seconds: float
    cpu_seconds: float


def side_by_side(
    ways: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True, between: Callable[[], object] = gc.collect,
) -> dict[str, Taken]:
    """Run all ways in turns, ``repeats`` times, so that other work on the machine affects all equally.

    ``between`` runs before each and is not timed. With ``warm_up``, a first turn is not counted.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(repeats + int(warm_up)):
        for name, way in ways.items():
            between()
            seconds, cpu_seconds = time.perf_counter(), _cpu_seconds()
            way()
            seconds, cpu_seconds = time.perf_counter() - seconds, _cpu_seconds() - cpu_seconds
            if turn or not warm_up:
                found[name].append((seconds, cpu_seconds))
    return {name: Taken(*map(statistics.median, zip(*values, strict=True))) for name, values in found.items()}


def print_heading(title: str) -> None:
    """Print what is measured, when, on which machine, and the machine's load (1-minute average)."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    print(f"{title}\n\n{now}, {model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}\n", flush=True)


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """Print a Markdown table; floats have two decimals."""
    shown = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    print(table(columns, shown) + "\n", flush=True)


def run_command(command: list[str], status: int = 0) -> None:
    """Run a command until it ends. Exits with its output if its exit status is not ``status``."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout)[-1500:]}")


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(item.ru_utime + item.ru_stime for item in used)
