"""The few numbers of a pipeline run that people compare first."""

from xft_core.recipe.steps import BASE_MODEL, MERGED_MODEL, MODELS
from xft_core.store.results.report import PASSED_PLUS

FIRST = f"{MERGED_MODEL}/{PASSED_PLUS}"


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """The report's numbers as MLflow groups them: ``merged_held_out_nll`` becomes ``merged/held_out_nll``; a benchmark's own
    tests ("base" in reports) need no name beside the extended ones: ``base_base_pass_at_1`` is ``base/pass_at_1``."""
    named = {}
    for name, value in metrics.items():
        model, _, rest = name.partition("_")
        rest = plain(rest)
        named[f"{model}/{rest}" if model in MODELS else name] = value
    # People read the most important one first where the order is kept.
    return dict(sorted(named.items(), key=lambda item: (not item[0].startswith(FIRST), "spread" in item[0])))


def plain(name: str) -> str:
    """The name of a share of problems solved, without "base" for the benchmark's own tests."""
    return name.replace("base_pass_at_", "pass_at_")


def of_variant(metrics: dict[str, float]) -> dict[str, float]:
    """Of a headline, what can differ between variants: the base model is the same for all. MLflow's compare page begins with
    the first name in the alphabet, which then is one that varies."""
    return {name: value for name, value in metrics.items() if not name.startswith(f"{BASE_MODEL}/")}
