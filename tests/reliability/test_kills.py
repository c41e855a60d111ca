"""A reduced number of kills of everything that a run consists of; docs/measurements/reliability.md records the full number."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import REPOSITORY
from tests.reliability.kill_harness import MOMENTS, TARGETS, plan


def test_every_target_is_killed_at_every_moment_before_any_again() -> None:
    kills = plan(53, random.Random(0))
    pairs = [(kill.target, kill.moment) for kill in kills]
    possible = len(TARGETS) * len(MOMENTS) - 2  # no stage is running at the start and at the end
    assert len(set(pairs[:possible])) == possible and len(pairs) == 53
    assert kills == plan(53, random.Random(0))


@pytest.mark.slow
def test_a_run_that_is_killed_at_eight_moments_ends_bit_identical(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.kill_harness", "--directory", str(tmp_path / "all"), "--kills", "8",
         "--seed", "1", "--figures", str(figures)], cwd=REPOSITORY, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(figures.read_text())["kills"] == 8
