"""Plots of a study: the ladder's differences with their intervals, and every arm's loss against its floating-point work.

As in the other reports, the same numbers give the same bytes.
"""

from collections.abc import Callable
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from xft_core.reporting.run.plots import STYLE, save
from xft_core.reporting.study.ladder import StudyResult

VERDICT_COLORS = {"shown": "#009E73", "small": "#56B4E9", "not shown": "#7F7F7F", "reversed": "#D55E00"}
UNIT = "nats per response token"


def draw_study(result: StudyResult, directory: Path) -> dict[str, str]:
    """Write every plot that has data. Returns their titles by file name."""
    directory.mkdir(parents=True, exist_ok=True)
    makers: dict[str, tuple[str, Callable[[StudyResult], Figure | None]]] = {
        "ladder.png": ("The claims of the ladder", ladder), "work.png": ("Loss against the work of training", work)}
    drawn = {}
    with style.context(["default", STYLE]):
        for name, (title, make) in makers.items():
            if (figure := make(result)) is not None:
                save(figure, directory / name)
                drawn[name] = title
    return drawn


def ladder(result: StudyResult) -> Figure | None:
    """One line per claim: the difference with its interval, every seed as a dot, and the smallest effect as a line."""
    rungs = [(rung, rung.difference, rung.low, rung.high) for rung in result.ladder
             if rung.difference is not None and rung.low is not None and rung.high is not None]
    if not rungs:
        return None
    figure = Figure(figsize=(9.0, 1.4 + 0.55 * len(rungs)))
    ax = figure.subplots()
    ax.axvline(0, color="#333333", linewidth=1)
    ax.axvline(-result.smallest_effect, color="#999999", linewidth=1, linestyle="--", label="smallest effect that counts")
    for row, (rung, difference, low, high) in enumerate(rungs):
        color = VERDICT_COLORS[rung.verdict]
        ax.plot([low, high], [row, row], color=color, linewidth=2.5, solid_capstyle="round")
        ax.plot([difference], [row], "o", color=color, markersize=7)
        ax.plot(rung.of_seeds, [row + 0.22] * len(rung.of_seeds), "|", color=color, alpha=0.8, markersize=7)
    names = [f"{result.ladder.index(rung) + 1}. {rung.lower}\n    − {rung.than}" for rung, *_ in rungs]
    ax.set_yticks(range(len(rungs)), names)
    ax.set_ylim(len(rungs) - 0.5, -0.5)
    ax.set_title("Difference in loss: left of zero the claim holds")
    ax.set_xlabel(UNIT)
    ax.grid(axis="x")
    for verdict in dict.fromkeys(rung.verdict for rung, *_ in rungs):
        ax.plot([], [], "o-", color=VERDICT_COLORS[verdict], label=verdict)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def work(result: StudyResult) -> Figure | None:
    """Loss of every arm, mean with its spread over seeds, against the floating-point work of one training."""
    arms = [(name, arm.training_flops, arm.mean, arm.spread) for name, arm in result.arms.items()
            if arm.mean is not None and arm.training_flops]
    if len(arms) < 2:
        return None
    figure = Figure(figsize=(9.0, 5.2))
    ax = figure.subplots()
    for number, (name, flops, mean, spread) in enumerate(arms):
        color = f"C{number % 10}"
        ax.errorbar([flops], [mean], [spread or 0.0], fmt="os^DvP"[number % 6], color=color, capsize=3,
                    label=name)
    ax.set_xlim(left=0)  # half the work is half as far; a logarithmic axis would write its numbers as formulas (see STYLE)
    ax.set_title("Lower and further left is better")
    ax.set_xlabel("floating-point operations of one training")
    ax.set_ylabel(UNIT)
    ax.grid()
    figure.legend(loc="outside right upper")
    return figure
