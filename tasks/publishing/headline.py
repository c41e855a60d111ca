"""The few numbers of a pipeline run that people compare first."""

from xft_core.recipe.steps import MODELS

FIRST = "merged/plus_pass_at_1"


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """The report's numbers as MLflow groups them: ``merged_held_out_nll`` becomes ``merged/held_out_nll``."""
    named = {}
    for name, value in metrics.items():
        model, _, rest = name.partition("_")
        named[f"{model}/{rest}" if model in MODELS else name] = value
    # MLflow's compare page begins with the metric that was logged first.
    return dict(sorted(named.items(), key=lambda item: (not item[0].startswith(FIRST), "spread" in item[0])))
