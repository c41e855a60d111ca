"""``comparison.md`` of a comparison of variants: the results table first, then the findings, the plots, and every run."""

from typing import Any

from xft_core.recipe.grid import Variant
from xft_core.recipe.steps import BASE_MODEL, MERGED_MODEL, MODELS, MOE_MODEL, SFT_MODEL
from xft_core.reporting.pass_rates import PassRate, not_graded_text, rate_text
from xft_core.reporting.tables import bullets, table
from xft_core.reporting.variants.contributions import contributions_section
from xft_core.reporting.variants.findings import show, value_text, variant_findings, variant_limits
from xft_core.reporting.variants.rivals import rivals_table
from xft_core.reporting.variants.summary import NLL, OVER_SFT, PASS, Group, Run, Variants
from xft_core.store.results.report import PASSED_PLUS

CAPTION = (
    "↓ lower is better, ↑ higher is better. NLL: negative log-likelihood on held-out rows, nats per response token. "
    "pass@1: % of problems solved; + includes the extended tests. ± is the spread over seeds (sample standard deviation), "
    "if there are several; the uncertainty from the choice of problems is in brackets under Every run.")
MODEL_TITLES = {MERGED_MODEL: "merged", SFT_MODEL: "SFT (dense)", MOE_MODEL: "MoE", BASE_MODEL: "base"}
NEWEST_FIRST = tuple(reversed(MODELS))


def variants_markdown(
    result: Variants, labels: dict[str, str], variants: list[Variant], plots: dict[str, str],
) -> str:
    """The text of the file. ``labels``: short names of the varying fields; ``plots``: titles of the plots by file name."""
    sections = [f"# {result.recipe}: comparison of {len(result.groups)} variants", _what_varies(result, labels)]
    if result.missing:
        sections.append("**Missing: " + ", ".join(f"`{name}`" for name in result.missing) + "**")
    sections += [CAPTION, headline_table(result)]
    if "overview.png" in plots:
        sections.append("![All variants](plots/overview.png)")
    sections += ["## What it says", bullets(variant_findings(result, labels, variants)),
                 "## What may be claimed", bullets(variant_limits(result, variants))]
    pictures = [(name, title) for name, title in plots.items() if name != "overview.png"]
    if pictures:
        sections += ["## By field", *(f"![{title}](plots/{name})" for name, title in pictures)]
    if result.rivals:
        sections += ["## At equal tokens and at equal work", rivals_table(result.rivals)]
    if result.contributions:
        sections += ["## One domain left out", contributions_section(result.contributions)]
    sections += ["## All models", *_model_tables(result)]
    sections += ["## Every run", _runs_table(result, labels)]
    return "\n\n".join(sections) + "\n"


def headline_table(result: Variants) -> str:
    """A table with one row per group: the merged model's numbers, and pass@1 minus that of the dense SFT of the same seed."""
    columns = [f"{MERGED_MODEL}/{NLL}"]
    header = ["variant", "seeds", "NLL ↓"]
    for benchmark in result.benchmarks():
        columns += [f"{MERGED_MODEL}/{name}/{benchmark}" for name in PASS] + [f"{OVER_SFT}/{PASSED_PLUS}/{benchmark}"]
        header += [f"{benchmark} % ↑", f"{benchmark}+ % ↑", "over SFT, points ↑"]
    rows = [[group.name, str(len(group.seeds)), *(cell(group, key) for key in columns)] for group in result.groups]
    used = [index for index in range(len(header)) if index < 2 or any(row[index] != "-" for row in rows)]
    return table([header[index] for index in used], [[row[index] for index in used] for row in rows])


def wide_rows(result: Variants) -> list[dict[str, Any]]:
    """One row per group with every varying field and every number (mean, and spread if there is one). Numbers are not
    formatted."""
    rows: list[dict[str, Any]] = []
    for group in result.groups:
        row: dict[str, Any] = {"variant": group.name, **group.settings, "seeds": len(group.seeds)}
        for key, value in group.numbers.items():
            row[key] = value.mean
            row[f"spread of {key}"] = value.spread
        rows.append(row)
    return rows


def cell(group: Group, key: str) -> str:
    """A number of a group without its unit; "-" if the group lacks it."""
    if key not in group.numbers:
        return "-"
    return show(key, group).removesuffix(" %") + not_graded_text(group.not_graded.get(key, 0))


def _what_varies(result: Variants, labels: dict[str, str]) -> str:
    parts = []
    for fields, values in result.axes:
        names = ", ".join(f"`{field}`" + (f" ({labels[field]})" if labels[field] != field else "") for field in fields)
        steps = ", ".join(" with ".join(map(value_text, step)) for step in values)
        parts.append(f"- {names}: {steps}")
    return "What varies:\n\n" + "\n".join(parts)


def _model_tables(result: Variants) -> list[str]:
    models = [model for model in NEWEST_FIRST if any(key.startswith(f"{model}/") for run in result.runs for key in run.numbers)]
    wanted = [("Held-out loss, NLL ↓", NLL, "")]
    for benchmark in result.benchmarks():
        titles = (f"{benchmark} pass@1 % ↑", f"{benchmark}+ pass@1 % ↑")
        wanted += [(title, name, f"/{benchmark}") for title, name in zip(titles, PASS, strict=True)]
    return [
        f"### {title}\n\n" + table(
            ["variant", *(MODEL_TITLES[model] for model in models)],
            [[group.name, *(cell(group, f"{model}/{name}{ending}") for model in models)] for group in result.groups])
        for title, name, ending in wanted]


def _runs_table(result: Variants, labels: dict[str, str]) -> str:
    solved = [f"{name}/{benchmark}" for benchmark in result.benchmarks() for name in PASS]
    keys = [f"{MERGED_MODEL}/{name}" for name in (NLL, *solved)]
    header = ["run", "NLL ↓", *(f"{benchmark}{plus} % ↑" for benchmark in result.benchmarks() for plus in ("", "+"))]
    rows = [[run.name, *(_run_cell(run, key) for key in keys)] for run in result.runs]
    return "The merged models, with the 95% interval over problems in brackets.\n\n" + table(header, rows)


def _run_cell(run: Run, key: str) -> str:
    if key not in run.numbers:
        return "-"
    if key not in run.intervals:
        return f"{run.numbers[key]:.4f}"
    return rate_text(PassRate(run.numbers[key], *run.intervals[key]), run.not_graded.get(key, 0))
