"""Pictures of a mixture: loss by domain, experts by domain, and the trade-off of a step back towards the base model."""

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from xft_core.recipe.steps import MERGED_MODEL, SFT_MODEL
from xft_core.reporting.run.comparison import Comparison

LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
FAMILIES = {MERGED_MODEL: "merged model", SFT_MODEL: "SFT (dense)"}
TRADE_OFF_NOTE = (
    "WiSE-FT (arXiv 2109.01903): weights between the base model (gamma 0) and the tuned one (gamma 1), as set by merge.wise "
    "and baseline.wise. The chosen model has the lowest loss on reserved rows; without such rows, it is the tuned model "
    "itself. To register a merged model with another gamma, set merge.delta_scale.")


def domain_bars(comparison: Comparison, colors: dict[str, str]) -> Figure | None:
    """Held-out loss of base, SFT, MoE and merged model with its interval, domain by domain."""
    shown = [domain for domain in comparison.domains if domain.losses]
    models = [row.model for row in comparison.rows if row.model in colors]
    if not shown or not models:
        return None
    figure = Figure(figsize=(8.0, 1.4 + 0.28 * len(shown) * (len(models) + 1)))
    ax = figure.subplots()
    height = 0.8 / len(models)
    for number, model in enumerate(models):
        found = [(place, loss) for place, domain in enumerate(shown) if (loss := domain.loss(model))]
        at = [place - 0.4 + (number + 0.5) * height for place, _ in found]
        values = [loss.nll for _, loss in found]
        name = next(row.name for row in comparison.rows if row.model == model)
        ax.barh(at, values, height=0.9 * height, color=colors[model], label=name)
        spread = [[value - (loss.interval or (value, value))[0] for value, (_, loss) in zip(values, found, strict=True)],
                  [(loss.interval or (value, value))[1] - value for value, (_, loss) in zip(values, found, strict=True)]]
        ax.errorbar(values, at, xerr=spread, fmt="none", color="#222222", capsize=2, linewidth=1.0)
    ax.set_yticks(range(len(shown)), [domain.name for domain in shown])
    ax.invert_yaxis()
    ax.set_title("Held-out loss by domain (lower is better)")
    ax.set_xlabel("negative log-likelihood, nats per response token, with 95% intervals over rows")
    ax.grid(axis="x")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25 if len(shown) < 4 else -0.12), ncols=2)
    return figure


def domain_heat_map(comparison: Comparison) -> Figure | None:
    """Expert by domain: each routed expert's load over its mean load in all domains, with the layers side by side."""
    routing = comparison.domain_routing
    if len(routing) < 2:
        return None
    loads_DLE = np.array([item.load for item in routing])
    domains, layers, experts = loads_DLE.shape
    mean_LE = loads_DLE.mean(0)
    ratios_DX = np.divide(loads_DLE, mean_LE, out=np.ones_like(loads_DLE), where=mean_LE > 0).reshape(domains, -1)
    span = max(0.1, float(np.abs(ratios_DX - 1).max()))  # less is noise and must not look like a pattern
    figure = Figure(figsize=(min(16.0, 3.5 + 0.45 * layers * experts), 1.9 + 0.45 * domains))
    ax = figure.subplots()
    low, high = max(0.0, 1 - span), 1 + span
    image = ax.imshow(ratios_DX, aspect="auto", cmap="PuOr_r", norm=TwoSlopeNorm(1.0, low, high))
    if ratios_DX.size <= 200:
        for (row, column), load in np.ndenumerate(loads_DLE.reshape(domains, -1)):
            red, green, blue, _ = image.to_rgba(ratios_DX[row, column])
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
            ax.text(column, row, f"{100 * load:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "#222222")
    for layer in range(1, layers):
        ax.axvline(layer * experts - 0.5, color="#222222", linewidth=1.2)
    step = max(1, layers // 16)
    ax.set_xticks([(layer + 0.5) * experts - 0.5 for layer in range(0, layers, step)],
                  [f"layer {layer}" for layer in range(0, layers, step)])
    ax.set_yticks(range(domains), [item.domain for item in routing])
    ax.set_title(f"Load of the {experts} routed experts of each layer by domain, %")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, label="load over mean of domains", pad=0.02)
    bar.ax.set_yticks([low, 1.0, high], [f"{low:.2f}×", "1×", f"{high:.2f}×"])
    bar.outline.set_visible(False)
    return figure


def trade_off(comparison: Comparison) -> Figure | None:
    """Loss of each domain between the base and the tuned model. If some domains were not learned, also their loss against
    that of the learned ones. The chosen point is marked."""
    curves = {family: points for family in FAMILIES if len(points := _points(comparison, family)) > 2}
    if not curves or not comparison.domains:
        return None
    learned = [domain.name for domain in comparison.domains if domain.learned and domain.losses]
    others = [domain.name for domain in comparison.domains if not domain.learned and domain.losses]
    panels = [*curves, *(["both"] if learned and others else [])]
    figure = Figure(figsize=(1.0 + 5.2 * len(panels), 4.4))
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for ax, family in zip(axes, curves, strict=False):
        points = curves[family]
        for number, name in enumerate([*learned, *others]):
            losses = [_losses(comparison, model)[name] for _, model in points]
            ax.plot([gamma for gamma, _ in points], losses, "o-" if name in learned else "o--", markersize=5,
                    color=LINE_COLORS[number % len(LINE_COLORS)], label=name if name in learned else f"{name} (not learned)")
        gamma = _chosen(comparison, points)[0]
        ax.axvline(gamma, color="#222222", linewidth=1.0, linestyle=":", label=f"chosen: {gamma:g}")
        ax.set_title(f"From the base model to the {FAMILIES[family]}")
        ax.set_xlabel("gamma (0: base model, 1: tuned)")
        ax.legend()
    if panels[-1] == "both":
        ax = axes[-1]
        for family, color in zip(curves, ("#009E73", "#0072B2"), strict=False):
            points = curves[family]
            xy = [tuple(float(np.mean([_losses(comparison, model)[name] for name in names])) for names in (learned, others))
                  for _, model in points]
            ax.plot(*zip(*xy, strict=True), "o-", color=color, label=FAMILIES[family])
            for (gamma, _), place in zip(points, xy, strict=True):
                ax.annotate(f"{gamma:g}", place, (4, 4), textcoords="offset points", fontsize=8.5)
            chosen = xy[points.index(_chosen(comparison, points))]
            ax.plot(*chosen, marker="*", markersize=15, color=color, markeredgecolor="#222222", linestyle="", label="chosen")
        ax.set_title("Learned domains against the others")
        ax.set_xlabel("held-out loss, mean of learned domains")
        ax.set_ylabel("mean of domains not learned")
        ax.legend()
    for ax in axes:
        ax.grid()
    axes[0].set_ylabel("held-out loss, nats per response token")
    return figure


def _points(comparison: Comparison, family: str) -> list[tuple[float, str]]:
    """(gamma, model) from the base model to the tuned one, for the models that were measured in every domain."""
    found = [(0.0, "base"), (1.0, family)]
    for item in comparison.row_comparisons:
        prefix = f"{family}_wise_"
        if item.model.startswith(prefix):
            found.append((float(item.model.removeprefix(prefix).replace("_", ".")), item.model))
    names = {domain.name for domain in comparison.domains if domain.losses}
    return sorted(point for point in found if names <= set(_losses(comparison, point[1])))


def _losses(comparison: Comparison, model: str) -> dict[str, float]:
    return {domain.name: loss.nll for domain in comparison.domains if (loss := domain.loss(model))}


def _chosen(comparison: Comparison, points: list[tuple[float, str]]) -> tuple[float, str]:
    reserved = {item.model: item.reserved_nll for item in comparison.row_comparisons if item.reserved_nll is not None}
    if all(model in reserved for _, model in points):
        return min(points, key=lambda point: reserved[point[1]])
    return next(point for point in points if point[0] == 1)
