"""The plots, drawn with matplotlib's own PNG writer: no display, no date, the same bytes for the same numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from xft_core.recipe.steps import BASE_MODEL, MERGED_MODEL, MIXED, MOE_MODEL, SFT_MODEL, TUNED
from xft_core.reporting.run.comparison import Comparison
from xft_core.reporting.run.domain_plots import domain_bars, domain_heat_map, trade_off
from xft_core.reporting.run.evidence import Evidence

# Okabe and Ito's palette, distinguishable with any colour vision.
COLORS = {BASE_MODEL: "#7F7F7F", SFT_MODEL: "#0072B2", MOE_MODEL: "#D55E00", MERGED_MODEL: "#009E73"}
RIVAL_COLOR = "#56B4E9"
STYLE: dict[str, Any] = {
    "figure.dpi": 130, "savefig.dpi": 130, "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.8, "legend.frameon": False,
    "text.parse_math": False,  # a name with two $ is not a formula
}
MOST_ANNOTATED_CELLS = 200
MOST_COLUMNS = 3


def draw_all(comparison: Comparison, evidence: Evidence, directory: Path) -> frozenset[str]:
    """Write every plot that has data, as PNG. Returns their names."""
    directory.mkdir(parents=True, exist_ok=True)
    draw: dict[str, Callable[[], Figure | None]] = {
        "results": lambda: results(comparison),
        "loss": lambda: loss(comparison, evidence),
        "expert_load": lambda: expert_load(comparison),
        "mixing": lambda: mixing(comparison),
        "token_classes": lambda: token_weights(comparison),
        "domains": lambda: domain_bars(comparison, COLORS),
        "domain_routing": lambda: domain_heat_map(comparison),
        "trade_off": lambda: trade_off(comparison),
    }
    drawn = set()
    with style.context(["default", STYLE]):  # "default" first: a user's matplotlibrc plays no part
        for name, make in draw.items():
            figure = make()
            if figure is not None:
                save(figure, directory / f"{name}.png")
                drawn.add(name)
    return frozenset(drawn)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same numbers. Characters that the font lacks are written as their numbers,
    because boxes would make two names look the same."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    for text in figure.findobj(Text):
        shown = text.get_text()
        if any(ord(character) not in known for character in shown if character != "\n"):
            text.set_text("".join(
                item if item == "\n" or ord(item) in known else item.encode("unicode_escape").decode() for item in shown))
    figure.savefig(path, metadata={"Software": None})


def results(comparison: Comparison) -> Figure | None:
    """pass@1 per benchmark with 95% intervals, and held-out loss: one bar per model, at most three panels side by side."""
    rows = comparison.rows
    benchmarks = list(dict.fromkeys(score.benchmark for row in rows for score in row.scores))
    has_loss = any(row.held_out_nll is not None for row in rows)
    panels = len(benchmarks) + has_loss
    if not panels:
        return None
    columns = min(panels, MOST_COLUMNS) if panels != 4 else 2
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(2.2 + 3.9 * columns, (1.5 + 0.75 * len(rows)) * lines))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for ax in axes[panels:]:
        ax.set_visible(False)
    for ax, benchmark in zip(axes, benchmarks, strict=False):
        _pass_bars(ax, comparison, benchmark)
    if has_loss:
        _held_out_bars(axes[panels - 1], comparison)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].set_ylim(len(rows) - 0.45, -0.55)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    return figure


def loss(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Training loss and held-out loss of both fine-tunings, and of learned mixing, over optimizer steps."""
    names = {row.model: row.name for row in comparison.rows}
    has_tuning = any(evidence.loss_curve(role) or evidence.held_out_curve(role) for role in TUNED.values())
    mixing_loss = evidence.loss_curve(MIXED)
    panels = has_tuning + bool(mixing_loss)
    if not panels:
        return None
    figure = Figure(figsize=(1.0 + 5.6 * panels, 4.2))
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if has_tuning:
        ax = axes[0]
        ax.set_title("Supervised fine-tuning")
        for model, role in TUNED.items():
            name = names.get(model, model)
            _loss_line(ax, evidence.loss_curve(role), COLORS[model], f"{name}, training")
            _held_out_line(ax, evidence.held_out_curve(role), COLORS[model], f"{name}, held out")
    if mixing_loss:
        ax = axes[-1]
        ax.set_title("Learning the mixing coefficients")
        _loss_line(ax, mixing_loss, COLORS[MERGED_MODEL], "training")
        result = comparison.mixing
        if result and result.held_out_nll_uniform is not None and result.held_out_nll_merged is not None:
            ends = [(0, result.held_out_nll_uniform), (mixing_loss[-1][0], result.held_out_nll_merged)]
            _held_out_line(ax, ends, COLORS[MERGED_MODEL], f"held out: uniform {ends[0][1]:.4f}, learned {ends[1][1]:.4f}")
    for ax in axes:
        ax.set_xlabel("optimizer step")
        ax.grid(axis="y")
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + 0.25 * (top - bottom))  # room for the legend
        ax.legend(loc="upper right")
    axes[0].set_ylabel("loss, nats per response token")
    return figure


def expert_load(comparison: Comparison) -> Figure | None:
    """Load of every routed expert by layer, next to the shared expert's mean weight."""
    layers = comparison.routing
    if not layers or not layers[0].load:
        return None
    uniform = sum(layers[0].load) / len(layers[0].load)
    return _layer_map(
        [layer.load for layer in layers], [uniform] * len(layers), [layer.mean_shared_weight for layer in layers],
        title=f"Load of routed experts, % (equal: {100 * uniform:.1f})", color_label="load over equal load",
        shared_title="Mean weight of\nthe shared expert", least_span=0.5)


def token_weights(comparison: Comparison) -> Figure | None:
    """The shared expert's mean weight by layer and class of token."""
    classes = comparison.token_classes
    if not classes:
        return None
    mean_LC = 100 * np.array([item.mean for item in classes]).T
    layers = len(mean_LC)
    figure = Figure(figsize=(2.4 + 1.25 * len(classes), max(2.6, min(12.0, 1.5 + 0.34 * layers))))
    ax = figure.subplots()
    image = ax.imshow(mean_LC, aspect="auto", cmap="cividis")
    if mean_LC.size <= MOST_ANNOTATED_CELLS:
        middle = (mean_LC.min() + mean_LC.max()) / 2
        for (row, column), value in np.ndenumerate(mean_LC):
            ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8.5,
                    color="white" if value <= middle else "#222222")
    ax.set_title("Mean weight of the shared expert by class of token, %")
    ax.set_xticks(range(len(classes)), [item.name for item in classes])
    ax.set_yticks(range(0, layers, max(1, layers // 16)))
    ax.set_ylabel("layer")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label="% of a token", pad=0.02).outline.set_visible(False)
    return figure


def mixing(comparison: Comparison) -> Figure | None:
    """Share of every expert in the merged model by layer, coloured relative to equal shares of the routed experts."""
    layers = comparison.mixing.layers if comparison.mixing else []
    if not layers or not layers[0].routed:
        return None
    equal = [sum(layer.routed) / len(layer.routed) for layer in layers]
    same = max(equal) - min(equal) < 1e-6
    return _layer_map(
        [layer.routed for layer in layers], equal, [layer.shared for layer in layers],
        title="Share of routed experts, %" + (f" (equal: {100 * equal[0]:.1f})" if same else ""),
        color_label="share over equal share", shared_title="Share of the\nshared expert", least_span=0.1)


def _pass_bars(ax: Axes, comparison: Comparison, benchmark: str) -> None:
    problems, highest = 0, 0.0
    for place, row in enumerate(comparison.rows):
        score = next((score for score in row.scores if score.benchmark == benchmark), None)
        if score is None:
            continue
        problems = score.problems
        bars: list[tuple[float, float, str, tuple[float, ...], str]] = [
            (0.0, 0.6, "plus", to_rgb(_color(row.model)), "")]
        if score.extended_tests:
            bars = [(-0.19, 0.36, "base", _light(_color(row.model)), "  base tests"),
                    (0.19, 0.36, "plus", to_rgb(_color(row.model)), "  plus tests")]
        for shift, height, tests, color, label in bars:
            rate = score.rate(tests)
            if rate is None:
                continue
            ax.barh(place + shift, 100 * rate.value, height=height, color=color)
            whisker = [[100 * (rate.value - rate.low)], [100 * (rate.high - rate.value)]]
            ax.errorbar(100 * rate.value, place + shift, xerr=whisker, color="#222222", capsize=2.5, linewidth=1.1)
            _label(ax, f"{100 * rate.value:.1f}{label}", 100 * rate.high, place + shift)
            highest = max(highest, 100 * rate.high)
    ax.set_title(f"{benchmark} pass@1 (higher is better)")
    ax.set_xlabel(f"% of {problems} problems, with 95% intervals")
    ax.set_xlim(0, max(1.0, 1.45 * highest))
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 100])
    ax.grid(axis="x")


def _held_out_bars(ax: Axes, comparison: Comparison) -> None:
    for place, row in enumerate(comparison.rows):
        if row.held_out_nll is not None:
            ax.barh(place, row.held_out_nll, height=0.6, color=_color(row.model))
            _label(ax, f"{row.held_out_nll:.4f}", row.held_out_nll, place)
    ax.set_title("Held-out loss (lower is better)")
    ax.set_xlabel("negative log-likelihood, nats per response token")
    ax.margins(x=0.2)
    ax.set_xlim(left=0)
    ax.grid(axis="x")


def _color(model: str) -> str:
    return COLORS.get(model, RIVAL_COLOR)


def _label(ax: Axes, text: str, x: float, y: float) -> None:
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=9)


def _loss_line(ax: Axes, points: list[tuple[int, float]], color: str, label: str) -> None:
    if points:
        ax.plot(*zip(*points, strict=True), color=color, linewidth=1.4, alpha=0.75, label=label)


def _held_out_line(ax: Axes, points: list[tuple[int, float]], color: str, label: str) -> None:
    if points:
        ax.plot(
            *zip(*points, strict=True), color=color, linestyle=":", marker="o", markersize=7, markeredgecolor="white",
            label=label, zorder=3)


def _light(color: str) -> tuple[float, ...]:
    return tuple(1 - 0.45 * (1 - part) for part in to_rgb(color))


def _layer_map(
    values: list[list[float]], equal: list[float], shared: list[float | None], *, title: str, color_label: str,
    shared_title: str, least_span: float,
) -> Figure:
    """A heat map of layers by experts, coloured by value over its equal share, with the shared expert's bars to its left."""
    layers, experts = len(values), len(values[0])
    has_shared = all(value is not None for value in shared)
    first = 1 if has_shared else 0
    ratios = [
        [value / reference if reference else 1.0 for value in line]
        for line, reference in zip(values, equal, strict=True)]
    # Never stretch the colours over less than least_span, or noise would look like a pattern.
    span = max(least_span, max(abs(ratio - 1) for line in ratios for ratio in line))
    low, high = max(0.0, 1 - span), 1 + span
    width = max(5.5, min(14.0, 2.5 + 0.62 * experts)) + 2.0 * has_shared
    height = max(2.6, min(12.0, 1.5 + 0.34 * layers))
    figure = Figure(figsize=(width, height))
    panels = [1, 3.2] if has_shared else [1]
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=panels)[0]
    ax = axes[-1]
    image = ax.imshow(ratios, aspect="auto", cmap="PuOr_r", norm=TwoSlopeNorm(1.0, low, high))
    if layers * experts <= MOST_ANNOTATED_CELLS:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                red, green, blue, _ = image.to_rgba(ratios[row][column])
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
                ax.text(column, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8.5,
                        color="white" if dark else "#222222")
    ax.set_title(title)
    ax.set_xlabel("expert")
    step = max(1, experts // 16)
    ax.set_xticks(range(0, experts, step), [str(index + first) for index in range(0, experts, step)])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = figure.colorbar(image, ax=ax, label=color_label, pad=0.02, fraction=0.05, aspect=height / 0.17)
    bar.ax.set_yticks([low, 1.0, high], [f"{low:.2f}×", "1× equal", f"{high:.2f}×"])
    bar.outline.set_visible(False)
    if has_shared:
        _shared_bars(axes[0], [value or 0.0 for value in shared], shared_title)
    axes[0].set_ylabel("layer")
    layer_step = max(1, layers // 16)
    axes[0].set_yticks(range(0, layers, layer_step))
    return figure


def _shared_bars(ax: Axes, shares: list[float], title: str) -> None:
    ax.barh(range(len(shares)), shares, height=0.7, color="#56B4E9")
    for row, share in enumerate(shares):
        if len(shares) <= 40:
            ax.text(0.03, row, f"{100 * share:.1f}", va="center", fontsize=8.5)
    ax.set_title(title)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(axis="x")
