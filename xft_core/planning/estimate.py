"""How long a stage takes, as a range: from what alike stages took here, else from probes of the machine.

    earlier run   the remembered times, scaled to the work of now: the fastest as if nothing else ran, the slowest at the
                  load of then or of now, each widened by SPREAD
    probe         the work at the probed rates: as fast as if nothing else ran, as slow as the probe was, widened by more

How wide is measured: ``python -m performance.planning durations`` (docs/explanation/sizing.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from xft_core.planning.history import Timing
from xft_core.planning.stage_plan import Rates, StagePlan

EARLIER, PROBE, GIVEN = "earlier run", "probe", "--flops"
SPREAD = 1.6  # of one stage's time, run again on the same machine
FAR_SPREAD = 2.5  # where the work is FAR times more or less than what was measured
FAR = 4.0
PROBE_FASTER, PROBE_SLOWER = 2.0, 2.5
ANSWERS_END_EARLY = 8.0  # answers may be as long as allowed, and mostly end long before


@dataclass(frozen=True)
class Estimate:
    """Seconds between ``low`` and ``high``, and what that rests on: EARLIER, PROBE or GIVEN."""

    low: float
    high: float
    basis: str

    def contains(self, seconds: float) -> bool:
        """Whether a time is within the range."""
        return self.low <= seconds <= self.high


def estimate(
    stage: StagePlan, rates: Rates, earlier: Sequence[Timing] = (), given: bool = False, slowdown: float = 1.0,
) -> Estimate | None:
    """The range of a stage's time; None where its work is not known and nothing alike was run.

    ``earlier``: times of alike stages; ``given``: the rate was given by the user, for another machine maybe, so that what
    was run here says nothing; ``slowdown``: by the load of now, 1 on an idle machine.
    """
    work = stage.work
    if earlier and work is not None and not given:
        return _from_earlier(work, rates.start, earlier, slowdown)
    seconds = stage.seconds(rates)
    if seconds is None:
        return None
    variable = max(seconds - rates.start, 0.0)
    ends_early = ANSWERS_END_EARLY if stage.role.startswith("generate_") else 1.0
    # A stage that is forked from a process that has its libraries starts at once (runtime/fork_server.py).
    return Estimate(
        low=variable / ends_early / rates.busy / PROBE_FASTER, high=seconds * PROBE_SLOWER, basis=GIVEN if given else PROBE)


def _from_earlier(work: float, start: float, earlier: Sequence[Timing], slowdown: float) -> Estimate:
    def scaled(timing: Timing) -> float:
        fixed = min(start, 0.9 * timing.seconds)  # the start takes as long however much there is to do
        return fixed + (timing.seconds - fixed) * work / timing.work

    ratios = [work / timing.work for timing in earlier]
    near = [timing for timing, ratio in zip(earlier, ratios, strict=True) if 1 / FAR <= ratio <= FAR]
    spread = SPREAD if near else FAR_SPREAD
    return Estimate(
        min(scaled(timing) / timing.slowdown for timing in near or earlier) / spread,
        max(scaled(timing) * max(1.0, slowdown / timing.slowdown) for timing in near or earlier) * spread, EARLIER)


def together(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """All stages one after the other: the sum, of those that are known; None where none is."""
    known = [item for item in estimates if item is not None]
    if not known:
        return None
    bases = dict.fromkeys(item.basis for item in known)
    return Estimate(sum(item.low for item in known), sum(item.high for item in known), ", ".join(bases))
