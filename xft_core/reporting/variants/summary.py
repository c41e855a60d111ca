"""The variants of a comparison in numbers: every run, groups of runs that differ only in the seed, and the effect of
each varying field. The content of the compare stage's ``comparison.json``."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xft_core.errors import ArtifactError, first_line
from xft_core.files.parsing import parse_json
from xft_core.recipe.grid import SEED, Axis, Variant
from xft_core.recipe.inactive_fields import plays_no_part
from xft_core.recipe.steps import MERGED_MODEL, MODELS, SFT_MODEL
from xft_core.reporting.run.comparison import Comparison, ComparisonFile
from xft_core.store.results.report import HELD_OUT_NLL, PASSED_BASE, PASSED_PLUS, merged_over

NLL = HELD_OUT_NLL
PASS = (PASSED_BASE, PASSED_PLUS)
OVER_SFT = merged_over(SFT_MODEL)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Part):
    """One variant. ``numbers``: ``<model>/held_out_nll`` in nats per response token, ``<model>/plus_pass_at_1/<benchmark>``
    and others as fractions, and ``merged_over_sft/...``: merged model minus dense SFT; ``merged_over_<rival>/held_out_nll``
    where rows were compared. ``intervals``: 95% of a pass@1,
    over the problems of the benchmark; ``not_graded``: answers that a pass@1 does not count, if any.
    ``held_out``: digest of the rows that held_out_nll is measured on."""

    name: str = Field(description="Name of the variant [text]")
    group: str = Field(description="Name of the group [text]")
    seed: int = Field(description="Seed of the run [no unit]")
    settings: dict[str, Any] = Field(description="Value of each varying field [no unit]")
    numbers: dict[str, float] = Field(description=(
        "By name: held_out_nll in nats per response token, all others as fractions [as each name says]"))
    intervals: dict[str, tuple[float, float]] = Field(description=(
        "95% interval of a pass@1 over the problems of the benchmark, by name [fraction, 0 to 1]"))
    not_graded: dict[str, int] = Field(description=(
        "Answers that a pass@1 does not count, by name, if any [count]"))
    held_out: str | None = Field(description="Digest of the rows that held_out_nll is measured on [sha256]")


class Statistic(_Part):
    """Mean of a number over the runs of a group that have it; ``spread``: sample standard deviation over their seeds,
    None for one measurement."""

    mean: float = Field(description="Mean over the runs that have the number [its own unit]")
    spread: float | None = Field(description="Standard deviation over seeds; null for one measurement [its own unit]")
    values: list[float] = Field(description="The single measurements [its own unit]")


class Group(_Part):
    """Runs that differ only in the seed. ``not_graded``: answers of all of them that a pass@1 does not count."""

    name: str = Field(description="Name of the group [text]")
    settings: dict[str, Any] = Field(description="Value of each varying field except the seed [no unit]")
    seeds: list[int] = Field(description="Seeds of the runs [no unit]")
    numbers: dict[str, Statistic] = Field(description="Each number, by name")
    not_graded: dict[str, int] = Field(description="Answers of all runs that a pass@1 does not count, by name [count]")


class Contribution(_Part):
    """The merged model's held-out loss in one domain with another left out, minus that with all domains."""

    settings: str = Field(description="Values of the other varying fields [text]")
    left_out: str = Field(description="The domain that was left out [text]")
    domain: str = Field(description="The domain that is measured [text]")
    seeds: int = Field(description="Seeds [count]")
    mean: float = Field(description="The difference [nats per response token]")
    interval: tuple[float, float] = Field(description="Its 95% interval, over seeds and rows [nats per response token]")


class Effect(_Part):
    """The change of a number when ``fields`` go from ``reference`` to ``values`` and nothing else changes: the mean over
    pairs of runs, with half of its 95% interval (Student's t; None for one pair, and if all pairs differ by exactly the
    same, which shows that they are few, not that the effect is certain). ``lower`` and ``higher`` count pairs."""

    fields: list[str] = Field(description="Fields that vary together [text]")
    reference: list[Any] = Field(description="Their values before [no unit]")
    values: list[Any] = Field(description="Their values after [no unit]")
    number: str = Field(description="Name of the number that changes [text]")
    pairs: int = Field(description="Pairs of runs that differ in nothing else [count]")
    difference: float = Field(description="Mean change over the pairs [its own unit]")
    half_interval: float | None = Field(description="Half of the 95% interval of the change; null for one pair [its own unit]")
    lower: int = Field(description="Pairs in which the number falls [count]")
    higher: int = Field(description="Pairs in which it rises [count]")


class RivalDifference(_Part):
    """Held-out loss of the merged model minus that of another model, of one group of variants: paired over seeds and rows (see
    reporting/study/differences.py)."""

    group: str = Field(description="Name of the group [text]")
    model: str = Field(description="The other model [text]")
    name: str = Field(description="Display name [text]")
    seeds: int = Field(description="Runs that have both [count]")
    mean: float = Field(description="Mean difference [nats per response token]")
    interval: tuple[float, float] = Field(description="95% interval over seeds and rows [nats per response token]")
    p_value: float = Field(description="Two-sided p-value against no difference [fraction, 0 to 1]")
    work: float | None = Field(description="Floating-point work of its training over the merged model's, mean [ratio]")
    tokens: float | None = Field(description="Tokens of its training over the merged model's, mean [ratio]")


class Variants(_Part):
    """The content of the report of a comparison. ``axes``: fields that vary together, with their values in order;
    ``titles``: of the recipes' benchmarks, including the skipped ones; ``problems``: how many each of the others has.
    If variants answered different numbers of a benchmark's problems, each number counts as a separate benchmark.
    ``missing``: variants without a result; ``idle``: for a field, the groups in which it plays no part."""

    file_name: ClassVar[str] = "comparison.json"
    recipe: str = Field(description="Name of the recipe [text]")
    axes: list[tuple[list[str], list[list[Any]]]] = Field(description=(
        "Fields that vary together, with their values in order [no unit]"))
    titles: list[str] = Field(description="Titles of the benchmarks, including the skipped ones [text]")
    problems: dict[str, int] = Field(description="Problems of each graded benchmark [count]")
    runs: list[Run] = Field(description="The variants")
    groups: list[Group] = Field(description="Variants that differ only in the seed")
    effects: list[Effect] = Field(description="The effect of each varying field")
    missing: list[str] = Field(description="Variants without a result [text]")
    idle: dict[str, list[str]] = Field(description="For a field, the groups in which it plays no part [text]")
    rivals: list[RivalDifference] = Field([], description="The merged model against each other one, if rows were compared")
    contributions: list[Contribution] = Field([], description="What each domain contributes, if data.leave_out varies")

    def text(self) -> str:
        """The content of the file."""
        empty = {name for name in ("rivals", "contributions") if not getattr(self, name)}
        return self.model_dump_json(indent=1, exclude=empty) + "\n"

    def benchmarks(self) -> list[str]:
        """Titles of the benchmarks, in the order of the recipe."""
        return list(self.problems)

    def compared_axes(self) -> list[tuple[list[str], list[list[Any]]]]:
        """The axes with several values, without the seed."""
        return [axis for axis in self.axes if axis[0] != [SEED] and len(axis[1]) > 1]


def put_together(recipe_name: str, axes: list[Axis], variants: list[Variant], reports: Mapping[str, Path]) -> Variants:
    """The numbers of all variants that have a report. Raises ArtifactError for a report that cannot be read."""
    present = [variant for variant in variants if variant.name in reports]
    comparisons = [read_comparison(reports[variant.name]) for variant in present]
    scores = [score for comparison in comparisons for row in comparison.rows for score in row.scores]
    sizes: dict[str, set[int]] = {}
    for score in scores:
        sizes.setdefault(score.benchmark, set()).add(score.problems)
    names = {
        (title, size): title if len(found) == 1 else f"{title} ({size} problems)"
        for title, found in sizes.items() for size in sorted(found)}
    runs = [_run(variant, comparison, names) for variant, comparison in zip(present, comparisons, strict=True)]
    titles = dict.fromkeys(title for comparison in comparisons for title in comparison.benchmarks)
    return Variants(
        recipe=recipe_name, axes=[_settled(axis, variants) for axis in axes], runs=runs,
        titles=[name for title in titles for name in [names[title, size] for size in sorted(sizes.get(title, ()))] or [title]],
        problems={name: size for title in titles for (of, size), name in names.items() if of == title},
        groups=_groups(runs), effects=_effects(axes, present, {run.name: run for run in runs}),
        missing=[variant.name for variant in variants if variant.name not in reports], idle=_idle(axes, present))


def read_comparison(report: Path) -> Comparison:
    """The numbers of one run's report. Raises ArtifactError when they are missing or damaged."""
    path = report / ComparisonFile.file_name
    try:
        return ComparisonFile.model_validate(parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise ArtifactError(f"{str(report)!r} is not a report: it has no comparison.json.") from None
    except (ValueError, AttributeError, ValidationError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {first_line(error)}") from None


def interval_factor(pairs: int) -> float:
    """Half of a 95% interval of a mean, in standard errors: Student's two-sided quantile, to three decimals."""
    from scipy.special import stdtrit  # scipy.stats.t.ppf, but scipy.stats takes a second to import

    # Rounded as in printed tables: stored reports that used such a table stay identical to new ones.
    return round(float(stdtrit(pairs - 1, 0.975)), 3)


def statistic(values: list[float], depends_on_seed: bool = True) -> Statistic:
    """Mean and spread of at least one value. A number that does not depend on the seed is one measurement, however often it
    was reported."""
    is_one = len(values) == 1 or (not depends_on_seed and len(set(values)) == 1)
    return Statistic(mean=fmean(values), spread=None if is_one else stdev(values), values=values[:1] if is_one else values)


def _run(variant: Variant, comparison: Comparison, names: Mapping[tuple[str, int], str]) -> Run:
    numbers: dict[str, float] = {}
    intervals, not_graded = {}, {}
    for row in comparison.rows:
        model = row.model
        if row.held_out_nll is not None:
            numbers[f"{model}/{NLL}"] = row.held_out_nll
        for score in row.scores:
            for tests in ("base", "plus"):
                if (rate := score.rate(tests)) is not None:
                    key = f"{model}/{tests}_pass_at_1/{names[score.benchmark, score.problems]}"
                    numbers[key], intervals[key] = rate.value, (rate.low, rate.high)
                    if score.infrastructure_errors:
                        not_graded[key] = score.infrastructure_errors
    for item in comparison.row_comparisons:
        numbers.setdefault(f"{item.model}/{NLL}", item.held_out_nll)
        if item.difference is not None and item.model not in MODELS:
            numbers[f"{merged_over(item.model)}/{NLL}"] = item.difference
    for key in [key for key in numbers if key.startswith(f"{MERGED_MODEL}/")]:
        rest = key.removeprefix(f"{MERGED_MODEL}/")
        if (control := numbers.get(f"{SFT_MODEL}/{rest}")) is not None:
            numbers[f"{OVER_SFT}/{rest}"] = numbers[key] - control
            if lost := not_graded.get(key, 0) + not_graded.get(f"{SFT_MODEL}/{rest}", 0):
                not_graded[f"{OVER_SFT}/{rest}"] = lost
    return Run(
        name=variant.name, group=variant.group, seed=comparison.seed, settings=variant.settings, numbers=numbers,
        intervals=intervals, not_graded=not_graded, held_out=comparison.held_out)


def _groups(runs: list[Run]) -> list[Group]:
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(run.group, []).append(run)
    found = []
    for name, group in members.items():
        keys = dict.fromkeys(key for run in group for key in run.numbers)
        numbers = {
            key: statistic([run.numbers[key] for run in group if key in run.numbers], not key.startswith("base/"))
            for key in keys}
        lost = {key: [run.not_graded[key] for run in group if key in run.not_graded] for key in keys}
        found.append(Group(
            name=name, settings={field: value for field, value in group[0].settings.items() if field != SEED},
            seeds=[run.seed for run in group],
            numbers=numbers,
            not_graded={key: sum(found[:len(numbers[key].values)]) for key, found in lost.items() if found}))
    return found


def _settled(axis: Axis, variants: list[Variant]) -> tuple[list[str], list[list[Any]]]:
    """The axis with its values as the recipes have them: ``1e-5`` is a text in YAML and a number in a recipe."""
    values: list[list[Any]] = []
    for variant in variants:
        step = [variant.settings[field] for field in axis.fields]
        if step not in values:
            values.append(step)
    return list(axis.fields), values


def _effects(axes: list[Axis], variants: list[Variant], runs: dict[str, Run]) -> list[Effect]:
    found = []
    for axis in axes:
        fields, steps = _settled(axis, variants)
        if fields == [SEED]:
            continue
        for values in steps[1:]:
            found_pairs = [
                (one, other) for one in variants for other in variants
                if _step(one, fields) == steps[0] and _step(other, fields) == values and _differ_only_in(one, other, fields)
                and not (len(fields) == 1 and plays_no_part(one.recipe, fields[0]) and plays_no_part(other.recipe, fields[0]))]
            # The same pair with another value of a field that plays no part is no further evidence.
            first = {(what_counts(one), what_counts(other)): (one, other) for one, other in reversed(found_pairs)}
            pairs = [(runs[one.name], runs[other.name]) for one, other in reversed(first.values())]
            for key in sorted({key for pair in pairs for key in pair[0].numbers if key.startswith(f"{MERGED_MODEL}/")}):
                changes = [b.numbers[key] - a.numbers[key] for a, b in pairs if key in a.numbers and key in b.numbers]
                if changes:
                    found.append(_effect(fields, steps[0], values, key, changes))
    return found


def _effect(fields: list[str], reference: list[Any], values: list[Any], key: str, changes: list[float]) -> Effect:
    count = len(changes)
    spread = stdev(changes) if count > 1 else 0.0
    # Floats that differ in their last bits count as the same change.
    half = interval_factor(count) * spread / math.sqrt(count) if spread > 1e-9 or (not any(changes) and count > 1) else None
    return Effect(
        fields=fields, reference=reference, values=values, number=key, pairs=count, difference=fmean(changes),
        half_interval=half, lower=sum(change < 0 for change in changes), higher=sum(change > 0 for change in changes))


def what_counts(variant: Variant) -> str:
    """The settings that play a part in a variant, including the seed: variants with equal ones are one experiment."""
    return repr({field: value for field, value in variant.settings.items() if not plays_no_part(variant.recipe, field)})


def _step(variant: Variant, fields: list[str]) -> list[Any]:
    return [variant.settings[field] for field in fields]


def _differ_only_in(one: Variant, other: Variant, fields: list[str]) -> bool:
    return all(value == other.settings[field] for field, value in one.settings.items() if field not in fields)


def _idle(axes: list[Axis], variants: list[Variant]) -> dict[str, list[str]]:
    found = {}
    for axis in axes:
        for field in axis.fields:
            groups = list(dict.fromkeys(item.group for item in variants if plays_no_part(item.recipe, field)))
            if groups and field != SEED:
                found[field] = groups
    return found
