"""The arithmetic of a time range: wider when less is known, and never from another machine's times."""

from dataclasses import replace

import pytest

from xft_core.planning.estimate import (
    EARLIER,
    FAR_SPREAD,
    GIVEN,
    PROBE,
    PROBE_FASTER,
    PROBE_SLOWER,
    SPREAD,
    Estimate,
    estimate,
    together,
)
from xft_core.planning.history import Timing
from xft_core.planning.memory import Memory
from xft_core.planning.stage_plan import Rates, StagePlan
from xft_core.planning.text import between

RATES = Rates(flops=1e9, bandwidth=1e12, disk=1e12, start=5.0)
STAGE = StagePlan("sft_moe", Memory(0.0), flops=100e9)


def timing(seconds: float, work: float = 100e9) -> Timing:
    return Timing(likeness="a", work=work, seconds=seconds, ended=0.0)


def made(stage: StagePlan, *earlier: Timing, rates: Rates = RATES, given: bool = False) -> Estimate:
    found = estimate(stage, rates, earlier, given)
    assert found is not None
    return found


def test_the_same_work_takes_as_long_as_before() -> None:
    found = made(STAGE, timing(60))
    assert (found.low, found.high, found.basis) == (pytest.approx(60 / SPREAD), pytest.approx(60 * SPREAD), EARLIER)
    assert found.contains(60) and not found.contains(60 * SPREAD * 1.01) and not found.contains(60 / SPREAD * 0.99)


def test_several_runs_span_from_the_fastest_to_the_slowest() -> None:
    found = made(STAGE, timing(40), timing(90), timing(60))
    assert (found.low, found.high) == (pytest.approx(40 / SPREAD), pytest.approx(90 * SPREAD))


def test_the_load_of_then_and_of_now_counts() -> None:
    """A time measured on a busy machine would have been shorter on an idle one. On a busier one, the run will take longer."""
    busy = timing(60).model_copy(update={"slowdown": 3.0})
    for now, slowest in ((1.0, 60), (3.0, 60), (6.0, 120)):
        found = estimate(STAGE, RATES, [busy], slowdown=now)
        assert found and (found.low, found.high) == (pytest.approx(20 / SPREAD), pytest.approx(slowest * SPREAD))


def test_more_work_takes_longer_but_the_start_does_not() -> None:
    found = made(replace(STAGE, flops=200e9), timing(65))
    assert found.high == pytest.approx((5 + 2 * 60) * SPREAD)
    assert made(replace(STAGE, flops=50e9), timing(65)).low == pytest.approx((5 + 30) / SPREAD)


def test_a_start_longer_than_the_stage_took_leaves_a_part_to_scale() -> None:
    found = made(replace(STAGE, flops=200e9), timing(4), rates=replace(RATES, start=50.0))
    assert found.high == pytest.approx((3.6 + 2 * 0.4) * SPREAD)


def test_work_far_from_what_was_measured_is_less_certain() -> None:
    far = made(replace(STAGE, flops=1000e9), timing(65))
    assert (far.low, far.high) == (pytest.approx(605 / FAR_SPREAD), pytest.approx(605 * FAR_SPREAD))
    near = made(replace(STAGE, flops=1000e9), timing(65), timing(600, work=900e9))
    assert near.high == pytest.approx((5 + 595 * 10 / 9) * SPREAD)


def test_without_an_earlier_run_the_probe_counts_and_a_busy_machine_widens_it() -> None:
    """A stage that is forked with its libraries loaded has no startup time."""
    found = made(STAGE)
    assert (found.low, found.high, found.basis) == (
        pytest.approx(100 / PROBE_FASTER), pytest.approx(105 * PROBE_SLOWER), PROBE)
    busy = made(STAGE, rates=replace(RATES, busy=3.0))
    assert (busy.low, busy.high) == (pytest.approx(found.low / 3), found.high)


def test_answers_may_end_before_they_are_as_long_as_allowed() -> None:
    stage = StagePlan("generate_base", Memory(0.0), flops=1.0, tokens=100.0)
    found = made(stage, rates=replace(RATES, token=0.8))
    assert found.low < 15 / PROBE_FASTER * 1.01 and found.high == pytest.approx(85 * PROBE_SLOWER)


def test_the_mixture_of_experts_has_rates_of_its_own() -> None:
    rates = replace(RATES, moe_flops=0.5e9, token=1.0, moe_token=2.0)
    assert replace(STAGE, moe=True).seconds(rates) == pytest.approx(205)
    assert StagePlan("generate_moe", Memory(0.0), tokens=10.0, moe=True).seconds(rates) == pytest.approx(25)


def test_a_given_rate_does_not_mix_with_times_of_this_machine() -> None:
    assert made(STAGE, timing(1e6), given=True).basis == GIVEN


def test_what_is_not_known_is_no_range() -> None:
    unknown = replace(STAGE, flops=None)
    assert estimate(unknown, RATES) is None and estimate(unknown, RATES, [timing(60)]) is None
    assert together([None]) is None and together([]) is None


def test_a_stage_without_arithmetic_has_times_too() -> None:
    stage = StagePlan("upcycle", Memory(0.0), written=1e9)
    assert stage.work == 1.0
    assert made(stage, timing(20, work=1.0)).high == pytest.approx(20 * SPREAD)


def test_all_stages_together() -> None:
    found = together([Estimate(1, 2, PROBE), None, Estimate(3, 5, EARLIER), Estimate(1, 1, PROBE)])
    assert found == Estimate(5, 8, f"{PROBE}, {EARLIER}")


@pytest.mark.parametrize(("low", "high", "text"), [
    (60, 200, "1 to 3 min"), (50, 70, "50 s to 1 min"), (0.2, 0.5, "<1 s"), (0.2, 4, "<1 to 4 s"),
    (7200, 10800, "2.0 to 3.0 h")])
def test_a_range_as_text(low: float, high: float, text: str) -> None:
    assert between(Estimate(low, high, PROBE)) == text
