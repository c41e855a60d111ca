"""Estimate the time of a stage as a range: from the times of similar stages on this machine, or else from probes of it.

    earlier run   the stored times, scaled to the current work: the fastest on an idle machine, the slowest at the earlier or
                  the current load, each widened by SPREAD
    probe         the work at the probed rates: the fastest on an idle machine, the slowest at the probe's speed, each
                  widened by more

The widths are measured by ``python -m performance.planning durations`` (docs/explanation/sizing.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from xft_core.planning.history import Timing
from xft_core.planning.stage_plan import Rates, StagePlan

EARLIER, PROBE, GIVEN = "earlier run", "probe", "--flops"
SPREAD = 1.6  # of one stage's time, run again on the same machine
FAR_SPREAD = 2.5  # if the work differs from all measured work by more than a factor of FAR
FAR = 4.0
PROBE_FASTER, PROBE_SLOWER = 2.0, 2.5
ANSWERS_END_EARLY = 8.0  # answers may have the maximum length, but usually end much earlier


@dataclass(frozen=True)
class Estimate:
    """Seconds between ``low`` and ``high``, and the basis of the estimate: EARLIER, PROBE or GIVEN."""

    low: float
    high: float
    basis: str

    def contains(self, seconds: float) -> bool:
        """Whether a time is within the range."""
        return self.low <= seconds <= self.high


def estimate(
    stage: StagePlan, rates: Rates, earlier: Sequence[Timing] = (), given: bool = False, slowdown: float = 1.0,
) -> Estimate | None:
    """Estimate the range of a stage's time; None if neither earlier times nor the rates give one.

    ``earlier``: times of similar stages; ``given``: the user gave the rate, possibly for another machine, so earlier runs
    here are not used; ``slowdown``: caused by the current load, 1 on an idle machine.
    """
    work = stage.work
    if earlier and work is not None and not given:
        return _from_earlier(work, rates.start, earlier, slowdown)
    seconds = stage.seconds(rates)
    if seconds is None:
        return None
    variable = max(seconds - rates.start, 0.0)
    ends_early = ANSWERS_END_EARLY if stage.role.startswith("generate_") else 1.0
    # A stage forked from a process that has loaded the libraries starts immediately (runtime/fork_server.py).
    return Estimate(
        low=variable / ends_early / rates.busy / PROBE_FASTER, high=seconds * PROBE_SLOWER, basis=GIVEN if given else PROBE)


def _from_earlier(work: float, start: float, earlier: Sequence[Timing], slowdown: float) -> Estimate:
    def scaled(timing: Timing) -> float:
        fixed = min(start, 0.9 * timing.seconds)  # the start takes equally long for any amount of work
        return fixed + (timing.seconds - fixed) * work / timing.work

    ratios = [work / timing.work for timing in earlier]
    near = [timing for timing, ratio in zip(earlier, ratios, strict=True) if 1 / FAR <= ratio <= FAR]
    spread = SPREAD if near else FAR_SPREAD
    return Estimate(
        min(scaled(timing) / timing.slowdown for timing in near or earlier) / spread,
        max(scaled(timing) * max(1.0, slowdown / timing.slowdown) for timing in near or earlier) * spread, EARLIER)


def together(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The time of all stages run one after the other: the sum of the known estimates; None if there are none."""
    known = [item for item in estimates if item is not None]
    if not known:
        return None
    bases = dict.fromkeys(item.basis for item in known)
    return Estimate(sum(item.low for item in known), sum(item.high for item in known), ", ".join(bases))
