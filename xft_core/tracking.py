"""Curves as they grow: a JSONL file that any tracker can follow, one line a point.

A stage only ever writes this file; who runs the stage (a person, a Prefect task) decides where the points go on to.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
        """Append values of which there is one a step, in place of what an earlier attempt wrote for the same step."""
        self._keep(lambda point: point["step"] != step or point["metrics"].keys() != metrics.keys())
        self.log(step, metrics)

    def forget_after(self, step: int) -> None:
        """Drop the points after ``step``: a run resumed from that step will write them again."""
        self._keep(lambda point: point["step"] <= step)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if not self.path.is_file():
            return
        kept = [json.dumps(point) for point in read_metrics(self.path) if wanted(point)]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole point of a curve file, in order; a line cut by a kill is left out."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            points.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return points
