"""The merged model against every other one over seeds and rows, for each group of variants whose rows were compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from xft_core.errors import ArtifactError
from xft_core.recipe.steps import MERGED_MODEL
from xft_core.reporting.run.comparison import RowComparison
from xft_core.reporting.study.differences import paired_difference
from xft_core.reporting.tables import table
from xft_core.reporting.variants.summary import RivalDifference, Run, read_comparison
from xft_core.runtime.quantities import fixed, signed
from xft_core.store.results.report import RunRowsFile

NOTE = (
    "Held-out loss of the merged model minus that of each other model, in nats per response token (below 0: the merged model "
    "is better). The 95% interval is over seeds and rows (bootstrap of both), or over rows alone for one seed. Tokens and "
    "work: the other model's training relative to the merged model's. p-values are not corrected for multiple comparisons.")


def rival_differences(runs: Sequence[Run], reports: Mapping[str, Path]) -> list[RivalDifference]:
    """One for each group and model. Runs whose held-out rows differ from those of their group's first run are left out. Raises
    ArtifactError for a broken report."""
    found = []
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        members = [run for run in members if run.held_out == members[0].held_out]
        rows = {run.name: content for run in members if (content := RunRowsFile.read(reports[run.name]))}
        told = {name: {item.model: item for item in read_comparison(reports[name]).row_comparisons} for name in rows}
        for model in dict.fromkeys(model for content in rows.values() for model in content.losses if model != MERGED_MODEL):
            having = {name: content for name, content in rows.items() if model in content.losses}
            found.append(_difference(group, model, having, {name: told[name] for name in having}))
    return found


def _difference(
    group: str, model: str, rows: Mapping[str, RunRowsFile], told: Mapping[str, Mapping[str, RowComparison]],
) -> RivalDifference:
    tokens, *others = [content.tokens for content in rows.values()]
    if any(other != tokens for other in others):
        raise ArtifactError(f"The reports of {', '.join(rows)} are of different held-out rows: rebuild them.")
    merged, other = (np.array([content.losses[name] for content in rows.values()]) for name in (MERGED_MODEL, model))
    difference = paired_difference(merged, other, np.array(tokens), random_seed=0)

    def share(quantity: str) -> float | None:
        of_runs = [(getattr(items[model], quantity), getattr(items[MERGED_MODEL], quantity)) for items in told.values()]
        known = all(one is not None and whole for one, whole in of_runs)
        return fmean(one / whole for one, whole in of_runs) if known else None

    return RivalDifference(
        group=group, model=model, name=next(iter(told.values()))[model].name, seeds=len(rows), mean=difference.mean,
        interval=(difference.low, difference.high), p_value=difference.p_value, work=share("training_flops"),
        tokens=share("training_tokens"))


def rivals_table(rivals: Sequence[RivalDifference]) -> str:
    """A table with one row per group and model."""
    header = ["variant", "model", "seeds", "merged minus it", "95% interval", "p", "tokens", "work"]
    lines = [
        [item.group, item.name, str(item.seeds), signed(item.mean, 4),
         f"{signed(item.interval[0], 4)} to {signed(item.interval[1], 4)}", f"{item.p_value:.2g}",
         *("-" if share is None else fixed(share, 2) for share in (item.tokens, item.work))]
        for item in rivals]
    return f"{NOTE}\n\n{table(header, lines)}"
