"""The shared expert's weight by class of token: numbers and a table. The heat map is in plots.py."""

import math

from xft_core.recipe.step import AVERAGE, CHOSEN, MOE_MODEL, TUNED
from xft_core.reporting.run.comparison import Comparison, TokenClassRouting
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.tables import table
from xft_core.store.results.sft import RouterFile

NOTE = (
    "Routing weight of the shared expert on response tokens, % of a token: mean and standard deviation over tokens, both "
    "averaged over layers, and the layers with the lowest and the highest mean. In code, classes are those of Python's "
    "tokenizer; everything else is prose.")


def router_file(evidence: Evidence) -> RouterFile | None:
    """router.json of the Mixture-of-Experts that is merged; None without one."""
    averaged = evidence.recipe.sft.average != "none"
    directory = evidence.directories.get(CHOSEN, evidence.directories.get(TUNED[MOE_MODEL]))
    return RouterFile.read(directory / AVERAGE if averaged else directory) if directory else None


def token_classes(evidence: Evidence) -> list[TokenClassRouting]:
    """The classes that were measured; empty without a shared expert, or for a training of an earlier version."""
    content = router_file(evidence)
    return [TokenClassRouting(**item.model_dump()) for item in (content.token_classes if content else [])]


def token_class_table(comparison: Comparison) -> str:
    """A table with a row for each class."""
    lines = []
    for item in comparison.token_classes:
        order = sorted(range(len(item.mean)), key=item.mean.__getitem__)
        low, high = (f"{100 * item.mean[layer]:.1f} (layer {layer})" for layer in (order[0], order[-1]))
        mean, spread = (100 * math.fsum(values) / len(values) for values in (item.mean, item.spread))
        lines.append([item.name, f"{item.tokens:,}", f"{mean:.1f}", f"{spread:.1f}", low, high])
    header = ["class", "tokens", "mean weight %", "spread %", "least", "most"]
    return f"{NOTE}\n\n{table(header, lines)}"
