"""Plots of a comparison of variants: all of them at a glance, and each varying field against pass@1 and held-out loss.

They show means with their spread over seeds, and every single run as a small dot. As in run/plots.py, the same numbers give
the same bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from xft_core.recipe.grid import SEED
from xft_core.recipe.labels import flat_names, unique_labels
from xft_core.recipe.steps import MERGED_MODEL, MOE_MODEL, SFT_MODEL
from xft_core.reporting.run.plots import COLORS, STYLE, save
from xft_core.reporting.variants.findings import settings_text, value_text
from xft_core.reporting.variants.summary import NLL, Run, Statistic, Variants, statistic
from xft_core.store.results.report import PASSED_PLUS

MODEL_NAMES = {MERGED_MODEL: "merged", SFT_MODEL: "SFT (dense)", MOE_MODEL: "MoE"}
SERIES_COLORS = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LOG_RATIO = 4  # numeric values that span more than this are spaced by their ratios
SOLVED, LOSS = "% of problems solved", "nats per response token"


def draw_variants(result: Variants, labels: dict[str, str], directory: Path) -> dict[str, str]:
    """Write every plot that has data. Returns their titles by file name, the overview first."""
    directory.mkdir(parents=True, exist_ok=True)
    draw: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "overview.png": ("All variants", lambda: overview(result))}
    names = flat_names(" ".join(labels[field] for field in fields) for fields, _ in result.compared_axes())
    for fields, steps in result.compared_axes():
        name = f"by_{names[' '.join(labels[field] for field in fields)]}.png"
        title = "pass@1 and held-out loss by " + " with ".join(fields)
        draw[name] = (title, lambda fields=fields, steps=steps: by_field(result, labels, fields, steps))  # type: ignore[misc]
    drawn = {}
    with style.context(["default", STYLE]):
        for name, (title, make) in draw.items():
            figure = make()
            if figure is not None:
                save(figure, directory / name)
                drawn[name] = title
    return drawn


def overview(result: Variants) -> Figure | None:
    """One line per group: merged model, MoE and dense SFT on every benchmark and by held-out loss."""
    panels = _panels(result)
    if not panels:
        return None
    groups = result.groups
    figure = Figure(figsize=(2.6 + 4.1 * len(panels), 1.7 + 0.46 * len(groups)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, ending, unit, scale) in zip(axes, panels, strict=True):
        for place, (model, shift) in enumerate(((MOE_MODEL, -0.24), (MERGED_MODEL, 0.0), (SFT_MODEL, 0.24))):
            for row, group in enumerate(groups):
                if (value := group.numbers.get(f"{model}/{ending}")) is not None:
                    _mark(ax, value, scale, row + shift, COLORS[model], MARKERS[place], sideways=True)
        for row in range(1, len(groups)):
            ax.axhline(row - 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
        ax.set_title(f"{title} ({'lower' if ending == NLL else 'higher'} is better)")
        ax.set_xlabel(unit)
        ax.margins(x=0.08)
        ax.grid(axis="x")
    axes[0].set_yticks(range(len(groups)), [group.name for group in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    for place, model in enumerate((MOE_MODEL, MERGED_MODEL, SFT_MODEL)):
        if any(key.startswith(f"{model}/") for group in groups for key in group.numbers):
            axes[0].plot([], [], MARKERS[place], color=COLORS[model], label=MODEL_NAMES[model])
    figure.legend(loc="outside lower center", ncols=3, title=_caption(result))
    return figure


def by_field(result: Variants, labels: dict[str, str], fields: list[str], steps: list[list[Any]]) -> Figure | None:
    """The merged model against one varying field (or fields that vary together): a line or a bar for each setting of
    the other fields, averaged over them if there are more than six. Dense SFT is a dashed line."""
    panels = _panels(result)
    if not panels:
        return None
    others = [field for names, _ in result.axes for field in names if field not in fields and field != SEED]
    settings = {_setting(run, others): _text(run, others, labels) for run in result.runs}
    averaged = len(settings) > len(SERIES_COLORS)
    series = dict(zip(settings, unique_labels([[text] for text in settings.values()]), strict=True))
    if averaged:
        series = {"": "mean over all other settings"}
    positions, is_numeric, is_log = _positions(steps)
    figure = Figure(figsize=(0.9 + max(4.4, 1.0 + 0.5 * len(steps)) * len(panels), 4.3))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, ending, unit, scale) in zip(axes, panels, strict=True):
        key = f"{MERGED_MODEL}/{ending}"
        if is_log:
            ax.set_xscale("log")
        bars = not is_numeric and ending != NLL  # for a loss, bars from zero show nothing
        there = numbers_by_step(result.runs, key, fields, [*others, SEED] if averaged else others, steps)
        for index, (setting, name) in enumerate(series.items()):
            points = []
            for step, position in zip(there, positions, strict=True):
                # Average over the same other settings at every step, or a missing variant would move the mean.
                chosen = common_to_all(there) if averaged else {setting}
                if values := [number for other, found in step.items() if other in chosen for number in found]:
                    place = _dodged(position, index, len(series), positions, is_numeric, is_log)
                    points.append((place, statistic(values)))
            _draw_series(ax, points, scale, index, name or "merged model", bars, is_numeric, 0.8 / len(series))
        control = [run.numbers[f"{SFT_MODEL}/{ending}"] for run in result.runs if f"{SFT_MODEL}/{ending}" in run.numbers]
        if control:
            ax.axhline(scale * statistic(control).mean, color="#666666", linestyle="--", linewidth=1.2, zorder=1,
                       label="SFT (dense), mean")
        ax.set_title(f"{title}, merged model" + (" (lower is better)" if ending == NLL else ""))
        ax.set_ylabel(unit)
        ax.set_xlabel(" with ".join(fields))
        ax.set_xticks(positions, [" / ".join(map(value_text, step)) for step in steps])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.margins(x=0.12, y=0.12)
        if bars:
            ax.set_ylim(bottom=0)
        ax.grid(axis="y")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(2, 8 // max(1, max(map(len, names)) // 12))),
                  title=_caption(result))
    return figure


def _panels(result: Variants) -> list[tuple[str, str, str, float]]:
    """Title, ending of the numbers' names, unit and scale of each panel."""
    found = [
        (f"{benchmark}+ pass@1", f"{PASSED_PLUS}/{benchmark}", f"{SOLVED} (of {problems})", 100.0)
        for benchmark, problems in result.problems.items()]
    if any(f"{MERGED_MODEL}/{NLL}" in run.numbers for run in result.runs):
        found.append(("Held-out loss", NLL, LOSS, 1.0))
    return found if result.runs else []


def _positions(steps: list[list[Any]]) -> tuple[list[float], bool, bool]:
    """The position of each step, whether the first field is numeric, and whether the scale is logarithmic."""
    first = [step[0] for step in steps]
    is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in first)
    if not is_numeric or len(set(first)) < len(first):
        return [float(index) for index in range(len(steps))], False, False
    is_log = min(first) > 0 and max(first) / min(first) >= LOG_RATIO
    return [float(value) for value in first], True, is_log


def _dodged(
    position: float, index: int, count: int, positions: list[float], is_numeric: bool, is_log: bool,
) -> float:
    """The position of one series at a step, shifted so that series do not hide each other."""
    shift = index - (count - 1) / 2
    if not is_numeric:
        return position + 0.8 / count * shift
    span = max(positions) / min(positions) if is_log else max(positions) - min(positions)
    return float(position * span ** (0.012 * shift) if is_log else position + 0.012 * span * shift)


def _draw_series(
    ax: Axes, points: list[tuple[float, Statistic]], scale: float, index: int, label: str, bars: bool, is_line: bool,
    width: float,
) -> None:
    color, marker = SERIES_COLORS[index % len(SERIES_COLORS)], MARKERS[index % len(MARKERS)]
    if not points:
        return
    places, means = [place for place, _ in points], [scale * value.mean for _, value in points]
    if bars:
        ax.bar(places, means, width=0.92 * width, color=color, alpha=0.55, label=label, zorder=2)
    else:
        ax.plot(places, means, linestyle="-" if is_line else "", marker=marker, markersize=6.5, color=color, linewidth=1.6,
                label=label, zorder=3)
    for place, value in points:
        _mark(ax, value, scale, place, color, "" if not bars else "_", sideways=False)


def _mark(ax: Axes, value: Statistic, scale: float, place: float, color: str, marker: str, sideways: bool) -> None:
    """The mean with its spread, and the single runs."""
    mean, spread = scale * value.mean, None if value.spread is None else scale * value.spread
    x, y = (mean, place) if sideways else (place, mean)
    ax.errorbar(
        x, y, xerr=spread if sideways else None, yerr=None if sideways else spread, fmt=marker or "none", color=color,
        capsize=2.5, linewidth=1.2, markersize=6.5, zorder=3)
    if len(value.values) > 1:
        singles, places = [scale * single for single in value.values], [place] * len(value.values)
        at = (singles, places) if sideways else (places, singles)
        ax.plot(*at, linestyle="", marker="o", markersize=3.4, color="white", markeredgecolor="#222222",
                markeredgewidth=0.8, zorder=4)


def numbers_by_step(
    runs: list[Run], key: str, fields: list[str], others: list[str], steps: list[list[Any]],
) -> list[dict[str, list[float]]]:
    """For each step of ``fields``, the numbers of its runs by the values of ``others``."""
    found: list[dict[str, list[float]]] = [{} for _ in steps]
    for run in runs:
        if key in run.numbers:
            step = found[steps.index([run.settings[field] for field in fields])]
            step.setdefault(_setting(run, others), []).append(run.numbers[key])
    return found


def common_to_all(numbers: list[dict[str, list[float]]]) -> set[str]:
    """The settings of the other fields for which every step has a number."""
    return set.intersection(*map(set, numbers))


def _setting(run: Run, fields: list[str]) -> str:
    """The exact values of ``fields``: names of variants round numbers."""
    return json.dumps([run.seed if field == SEED else run.settings[field] for field in fields])


def _text(run: Run, fields: list[str], labels: dict[str, str]) -> str:
    return settings_text(fields, [run.settings[field] for field in fields], labels)


def _caption(result: Variants) -> str | None:
    if max(len(group.seeds) for group in result.groups) < 2:
        return None
    return "mean ± spread over seeds; small dots: single runs"
