"""Findings of a comparison of variants, in plain sentences that claim no more certainty than its runs support."""

from collections.abc import Iterator
from statistics import fmean

from xft_core.recipe.grid import Variant
from xft_core.recipe.inactive_fields import merges_an_untuned_expert, plays_no_part
from xft_core.recipe.shared_trainings import shared_by_variants, soup_size
from xft_core.recipe.steps import MERGED_MODEL
from xft_core.reporting.variants.summary import NLL, OVER_SFT, Effect, Group, Variants, what_counts
from xft_core.runtime.quantities import fixed, signed
from xft_core.store.results.report import PASSED_PLUS

FEW_SEEDS = 3


def variant_findings(result: Variants, labels: dict[str, str], variants: list[Variant]) -> list[str]:
    """The best variants, the effect of each field, and the merged model against plain SFT."""
    return [*_best(result), *_over_sft(result, variants), *_field_sentences(result, labels),
            *_idle_sentences(result, labels, variants), *_untuned_sentences(result, variants)]


def variant_limits(result: Variants, variants: list[Variant]) -> list[str]:
    """What may and may not be claimed from these runs."""
    seeds = [len(group.seeds) for group in result.groups]
    found = []
    if not seeds:
        return ["No variant has a result, so nothing can be claimed."]
    if max(seeds) == 1:
        apart = max((soup_size(variant.recipe) for variant in variants), default=1)
        found.append(
            "Each variant has one run: nothing here separates an effect of the settings from chance in training. Add "
            f"`seed=[0,{apart},{2 * apart}]` to the grid before you claim an effect.")
    elif min(seeds) < FEW_SEEDS:
        shown = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else str(min(seeds))
        found.append(
            f"Each variant has {shown} seeds: the spread (sample standard deviation over seeds) is only a rough estimate of "
            "how much two runs with the same settings can differ.")
    found += [sentence[0].upper() + sentence[1:] for sentence in shared_by_variants(variants)]
    for benchmark, problems in result.problems.items():
        intervals = [
            interval for run in result.runs for key, interval in run.intervals.items()
            if key == f"{MERGED_MODEL}/{PASSED_PLUS}/{benchmark}"]
        if intervals:
            found.append(
                f"{benchmark} has {problems} problems: the 95 % interval of one pass@1 over them is about "
                f"{100 * fmean(high - low for low, high in intervals):.1f} points wide. All variants answer the same "
                "problems, so they share this part of the error to some degree; with other problems they would not.")
    found += _not_the_same_measure(result)
    if any(effect.half_interval is not None for effect in result.effects):
        found.append(
            "The 95 % intervals treat pairs of runs as independent. Pairs that share a seed or a run are not quite "
            "independent: with few seeds, read the intervals as a lower bound on the uncertainty.")
    if len(result.groups) > 2:
        found.append(
            f"The best of {len(result.groups)} variants was picked from these results, so part of its lead is luck. Repeat "
            "it with new seeds.")
    if result.missing:
        found.append(f"Missing: {', '.join(result.missing)}. Means over the others may not be comparable.")
    return found


def _not_the_same_measure(result: Variants) -> Iterator[str]:
    """Sentences on columns whose numbers are not over the same rows, problems or answers."""
    if len({run.held_out for run in result.runs if any(map(is_loss, run.numbers))} - {None}) > 1:
        yield ("The variants have different held-out rows: differences in held-out loss between them, and the spread over "
               "seeds, come from the rows too.")
    if any(title.endswith(f" ({size} problems)") for title, size in result.problems.items()):
        yield "Not all variants answered the same number of problems: each number has its own column."
    for group in result.groups:
        few = [f"{key} ({len(value.values)})" for key, value in group.numbers.items() if _is_part(group, key)]
        if few:
            yield (f"{group.name}: some of the {len(group.seeds)} runs lack these numbers, which are means over the others: "
                   f"{', '.join(few)}.")
    for run in result.runs:
        lost = [(key.split("/", 2), number) for key, number in run.not_graded.items()]
        if shown := [f"{number} of {model} on {benchmark}" for (model, name, benchmark), number in lost
                     if name == PASSED_PLUS and model != OVER_SFT]:
            yield (f"{run.name}: some answers have no verdict and are not counted: {', '.join(shown)}. Evaluate them "
                   "again.")


def _is_part(group: Group, key: str) -> bool:
    """Whether some runs of a group lack a number. The base model's numbers are one measurement for all runs."""
    return not key.startswith("base/") and len(group.numbers[key].values) < len(group.seeds)


def best_group(result: Variants) -> Group | None:
    """The group whose merged model solves the most problems (extended tests, first benchmark). Held-out loss decides ties, and
    decides alone if nothing was answered."""
    keys = [f"{MERGED_MODEL}/{PASSED_PLUS}/{benchmark}" for benchmark in result.benchmarks()[:1]]

    def rank(group: Group) -> tuple[float, ...]:
        solved = [-group.numbers[key].mean if key in group.numbers else 1.0 for key in keys]
        loss = group.numbers.get(f"{MERGED_MODEL}/{NLL}")
        return (*solved, loss.mean if loss else float("inf"))

    return min(result.groups, key=rank, default=None)


def _best(result: Variants) -> Iterator[str]:
    for benchmark in result.benchmarks():
        key = f"{MERGED_MODEL}/{PASSED_PLUS}/{benchmark}"
        yield from _extremes(result, key, f"{benchmark}+, merged model", highest=True)
    yield from _extremes(result, f"{MERGED_MODEL}/{NLL}", "Held-out loss, merged model", highest=False)


def _extremes(result: Variants, key: str, title: str, highest: bool) -> Iterator[str]:
    groups = sorted(
        (group for group in result.groups if key in group.numbers),
        key=lambda group: group.numbers[key].mean, reverse=highest)
    if len(groups) < 2:
        return
    first, last = groups[0], groups[-1]
    best, worst = ([group for group in groups if group.numbers[key].mean == end.numbers[key].mean] for end in (first, last))
    if len(best) == len(groups):
        yield f"{title}: the same in all variants, {show(key, first)}."
        return
    if len(groups) == 2:
        yield f"{title}: better with {first.name} ({show(key, first)}) than with {last.name} ({show(key, last)})."
        return
    then = "" if len(best) > 1 or groups[1] in worst else f", then {groups[1].name} ({show(key, groups[1])})"
    yield f"{title}: best with {_alike(key, best)}{then}, worst with {_alike(key, worst)}."


def _alike(key: str, groups: list[Group]) -> str:
    """Groups with the same mean, each with its number."""
    return " and ".join(f"{group.name} ({show(key, group)})" for group in groups)


def _over_sft(result: Variants, variants: list[Variant]) -> Iterator[str]:
    of_name = {variant.name: what_counts(variant) for variant in variants}
    for key, title, better in (
        *((f"{OVER_SFT}/{PASSED_PLUS}/{benchmark}", f"{benchmark}+", 1) for benchmark in result.benchmarks()),
        (f"{OVER_SFT}/{NLL}", "Held-out loss", -1),
    ):
        all_values = [(of_name[run.name], run.numbers[key]) for run in result.runs if key in run.numbers]
        values = list(dict(reversed(all_values)).values())  # one for each experiment
        if values:
            wins, losses = (sum(sign * better * value > 0 for value in values) for sign in (1, -1))
            again = len(all_values) - len(values)
            repeats = f" ({again} more differ from these only in settings that play no part)" if again else ""
            yield (f"{title}: the merged model is better than the dense SFT of the same seed in {wins} of {len(values)} "
                   f"runs and worse in {losses}{repeats}; {_amount(key, fmean(values))} on average.")


def _field_sentences(result: Variants, labels: dict[str, str]) -> Iterator[str]:
    wanted = [f"{MERGED_MODEL}/{PASSED_PLUS}/{benchmark}" for benchmark in result.benchmarks()] + [f"{MERGED_MODEL}/{NLL}"]
    for effect in result.effects:
        if effect.number in wanted:
            yield _effect_sentence(effect, labels)


def _effect_sentence(effect: Effect, labels: dict[str, str]) -> str:
    _, name, *benchmark = effect.number.split("/", 2)
    title = f"{benchmark[0]}+" if benchmark else "held-out loss"
    text = (f"{settings_text(effect.fields, effect.values, labels)} against "
            f"{settings_text(effect.fields, effect.reference, labels)}, all else equal: {title} "
            f"{_amount(effect.number, effect.difference)}")
    pairs = f"{effect.pairs} pairs of runs" if effect.pairs > 1 else "one pair of runs"
    if effect.half_interval is None and effect.pairs > 1:
        return f"{text} (exactly this in each of {pairs}): too few to estimate the role of chance."
    if effect.half_interval is None:
        return f"{text} ({pairs}): one pair cannot tell an effect from chance."
    if effect.lower == effect.higher == 0:
        return f"{text} in {pairs}."
    low, high = effect.difference - effect.half_interval, effect.difference + effect.half_interval
    scale, digits = (100, 1) if name != NLL else (1, 4)
    interval = f"95 % interval {scale * low:+.{digits}f} to {scale * high:+.{digits}f} over {pairs}"
    if low <= 0 <= high:
        return f"{text} ({interval}): no difference can be claimed."
    return f"{text} ({interval}), in the same direction in {max(effect.lower, effect.higher)} of {effect.pairs}."


def _idle_sentences(result: Variants, labels: dict[str, str], variants: list[Variant]) -> Iterator[str]:
    for field, groups in result.idle.items():
        reason = next(text for item in variants if item.group == groups[0] and (text := plays_no_part(item.recipe, field)))
        names = ", ".join(groups)
        yield (f"{labels[field]} plays no part in {names}: {reason}. Where these differ only in "
               f"{labels[field]}, differences in results are rounding or chance and are left out above.")


def _untuned_sentences(result: Variants, variants: list[Variant]) -> Iterator[str]:
    present = {run.name for run in result.runs}
    groups = list(dict.fromkeys(
        item.group for item in variants if item.name in present and merges_an_untuned_expert(item.recipe)))
    if groups:
        yield (f"With two experts, the shared one has weight 0 for every token and is not tuned ({', '.join(groups)}): its "
               "share of the merged model is the base model's FFN.")


def show(key: str, group: Group) -> str:
    """A group's number as text: ``51.2 ± 1.8 %`` or ``0.2171 ± 0.0003``."""
    value = group.numbers[key]
    unit = "" if is_loss(key) else " %"
    scale, digits = (1, 4) if is_loss(key) else (100, 1)
    # A share has no decimals of its own below the first; a spread has: two runs that differ do not agree.
    # If every seed solves none or all of the problems, a spread of 0 would mislead: see the interval of each run.
    is_edge = value.spread == 0 and value.mean in (0, 1) and not is_loss(key) and not key.startswith(OVER_SFT)
    spread = "" if value.spread is None or is_edge else f" ± {fixed(scale * value.spread, digits)}"
    mean = signed(scale * value.mean, digits) if key.startswith(OVER_SFT) else fixed(scale * value.mean, digits)
    return f"{mean}{spread}{unit}"


def is_loss(key: str) -> bool:
    """Whether a number is a held-out loss, in nats, rather than a fraction of problems solved."""
    return key.split("/")[1] == NLL


def settings_text(fields: list[str], values: list[object], labels: dict[str, str]) -> str:
    """``experts=4 active=3``."""
    return " ".join(f"{labels[field]}={value_text(value)}" for field, value in zip(fields, values, strict=True))


def value_text(value: object) -> str:
    """A setting as it appears in names of variants."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _amount(key: str, difference: float) -> str:
    if difference == 0:
        return "no difference"
    if is_loss(key):
        return f"{fixed(abs(difference), 4)} nats {'lower' if difference < 0 else 'higher'}"
    return f"{fixed(100 * abs(difference), 1)} points {'higher' if difference > 0 else 'lower'}"
