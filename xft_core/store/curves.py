"""Curves while they grow: a JSONL file that any tracker can follow, with one line per point.

A stage only writes this file. The caller of the stage (a user, a Prefect task) decides where the points are sent.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xft_core.files.disk import write_whole
from xft_core.files.parsing import parse_json


class MetricsLog:
    """Append-only ``{"step": int, "time": unix seconds, "metrics": {name: float}}`` lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append the values of one optimizer step."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), "metrics": metrics})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def set(self, step: int, metrics: dict[str, float]) -> None:
        """Append values that exist once per step, replacing those that an earlier attempt wrote for the same step."""
        self._keep(lambda point: point["step"] != step or point["metrics"].keys() != metrics.keys())
        self.log(step, metrics)

    def forget_after(self, step: int) -> None:
        """Drop the points after ``step``: a run resumed from that step will write them again."""
        self._keep(lambda point: point["step"] <= step)

    def begin(self) -> None:
        """Start without points. Those of an earlier attempt are restored with its checkpoint (``restore_from``)."""
        self.path.unlink(missing_ok=True)

    def copy_to(self, checkpoint: Path) -> None:
        """Copy the points so far into a checkpoint, whose seal then covers them."""
        if self.path.is_file():
            shutil.copyfile(self.path, checkpoint / self.path.name)

    def restore_from(self, checkpoint: Path) -> None:
        """Restore exactly the points that were copied into a checkpoint."""
        self.begin()
        if (checkpoint / self.path.name).is_file():
            write_whole(self.path, (checkpoint / self.path.name).read_bytes())

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if not self.path.is_file():
            return
        kept = [json.dumps(point) for point in read_metrics(self.path) if wanted(point)]
        write_whole(self.path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete point of a curve file, in order. Lines that were cut by a kill or are not points are skipped."""
    if not path.is_file():
        return []
    return [point for line in path.read_bytes().splitlines() if (point := parse_point(line)) is not None]


def parse_point(line: bytes) -> dict[str, Any] | None:
    """The point in one line of a curve file; None if the line is not a point."""
    try:
        point = parse_json(line)
    except ValueError:
        return None
    is_point = isinstance(point, dict) and all(_is_number(point.get(name)) for name in ("step", "time")) and isinstance(
        point.get("metrics"), dict) and all(map(_is_number, point["metrics"].values()))
    return point if is_point and isinstance(point["step"], int) and 0 <= point["step"] < 2**63 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
