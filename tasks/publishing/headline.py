"""The few metrics of a pipeline run that users compare first."""

from xft_core.recipe.steps import BASE_MODEL, MERGED_MODEL, MODELS
from xft_core.store.results.report import PASSED_PLUS

FIRST = f"{MERGED_MODEL}/{PASSED_PLUS}"


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """Return the report's metrics under names that MLflow groups: ``merged_held_out_nll`` becomes ``merged/held_out_nll``. A
    benchmark's own tests ("base" in reports) are not named: ``base_base_pass_at_1`` becomes ``base/pass_at_1``."""
    named = {}
    for name, value in metrics.items():
        model, _, rest = name.partition("_")
        rest = plain(rest)
        named[f"{model}/{rest}" if model in MODELS else name] = value
    # The most important one comes first wherever the order is kept.
    return dict(sorted(named.items(), key=lambda item: (not item[0].startswith(FIRST), "spread" in item[0])))


def plain(name: str) -> str:
    """Return the name of a fraction of solved problems, without "base" for the benchmark's own tests."""
    return name.replace("base_pass_at_", "pass_at_")


def of_variant(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of a headline that can differ between variants: the base model is the same for all. MLflow's compare
    page starts with the alphabetically first name, which is then one that varies."""
    return {name: value for name, value in metrics.items() if not name.startswith(f"{BASE_MODEL}/")}
