"""Leave one domain out: what each domain contributes to every other, in a comparison that varies data.leave_out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xft_core.recipe.steps import MERGED_MODEL
from xft_core.reporting.study.differences import paired_difference
from xft_core.reporting.tables import table
from xft_core.reporting.variants.summary import Contribution, Run
from xft_core.runtime.quantities import signed
from xft_core.store.results.report import RunRowsFile

FIELD = "data.leave_out"
NOTE = (
    "Held-out loss of the merged model with one domain left out minus that with all domains, in nats per response token, with "
    "its 95% interval over seeds and rows (over rows alone for one seed). Above 0, the left-out domain helps; below 0, it does "
    "harm (negative transfer). Where row and column are the same domain, the number shows what the domain's data teaches.")


def contributions(runs: Sequence[Run], reports: Mapping[str, Path]) -> list[Contribution]:
    """One for each left-out domain and each measured domain, from pairs of runs with the same seed and other settings. Empty if
    the field does not vary, or if rows were not compared."""
    rows = {run.name: content for run in runs if FIELD in run.settings and (content := RunRowsFile.read(reports[run.name]))
            and content.domains and MERGED_MODEL in content.losses}
    whole = {_key(run): run for run in runs if run.name in rows and run.settings[FIELD] is None}
    without = [run for run in runs if run.name in rows and run.settings[FIELD] is not None and _key(run) in whole]
    found = []
    for others in dict.fromkeys(_others(run) for run in without):
        of_setting = [run for run in without if _others(run) == others]
        for left_out in dict.fromkeys(run.settings[FIELD] for run in of_setting):
            pairs = [(rows[run.name], rows[whole[_key(run)].name]) for run in of_setting if run.settings[FIELD] == left_out]
            first = pairs[0][0]
            if any((one.tokens, one.domains) != (first.tokens, first.domains) for pair in pairs for one in pair):
                continue  # measured on other rows
            for domain in dict.fromkeys(first.domains):
                at = np.array([name == domain for name in first.domains])
                losses, of_whole = (np.array([pair[side].losses[MERGED_MODEL] for pair in pairs])[:, at] for side in (0, 1))
                difference = paired_difference(losses, of_whole, np.array(first.tokens)[at], random_seed=0)
                found.append(Contribution(
                    settings=others, left_out=left_out, domain=domain, seeds=len(pairs), mean=difference.mean,
                    interval=(difference.low, difference.high)))
    return found


def contributions_section(found: Sequence[Contribution]) -> str:
    """A table for each setting of the other fields: a row for each measured domain, a column for each left-out one."""
    parts = [NOTE]
    for settings in dict.fromkeys(item.settings for item in found):
        of_setting = [item for item in found if item.settings == settings]
        columns = list(dict.fromkeys(item.left_out for item in of_setting))
        lines = []
        for domain in dict.fromkeys(item.domain for item in of_setting):
            cells = {item.left_out: item for item in of_setting if item.domain == domain}
            lines.append([domain, *(_cell(cells[column]) if column in cells else "-" for column in columns)])
        header = ["NLL of", *(f"without {name}" for name in columns)]
        parts += [*([f"### {settings}"] if settings else []), table(header, lines)]
    return "\n\n".join(parts)


def _cell(item: Contribution) -> str:
    return f"{signed(item.mean, 4)} [{signed(item.interval[0], 4)}, {signed(item.interval[1], 4)}]"


def _others(run: Run) -> str:
    return " ".join(f"{name}={value}" for name, value in run.settings.items() if name not in (FIELD, "seed"))


def _key(run: Run) -> tuple[Any, ...]:
    return run.seed, _others(run)
