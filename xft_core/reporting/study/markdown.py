"""``study.md``: the question, the outcome of the ladder, and every arm with its choice and its cost."""

from collections.abc import Sequence
from typing import Any

from xft_core.recipe.study import StudyConfig
from xft_core.reporting.study.ladder import ArmResult, RungResult, StudyResult
from xft_core.reporting.tables import bullets, table

CAPTION = (
    "Losses are negative log-likelihoods in nats per response token on {rows:,} rows that served neither training nor any "
    "choice; lower is better. ± is the sample standard deviation over seeds. Intervals are 95%, over {drawn} of paired "
    "differences); p-values are two-sided and corrected for the number of claims (Holm).{limit}")
BOTH, ROWS_ONLY = "seeds and rows (two-way bootstrap", "rows only (bootstrap"
OF_ONE_SEED = " With one seed they do not contain the chance of another training."


def study_markdown(
    result: StudyResult, study: StudyConfig, plots: dict[str, str], failures: dict[str, str], limits: Sequence[str] = (),
) -> str:
    """The text of study.md. ``plots``: titles of the plots by file name; ``failures``: reasons by run; ``limits``: sentences on
    what the intervals do not cover."""
    sections = [f"# {result.name}", result.question, _caption(result), "## The ladder", _breaks(result), *limits]
    if result.ladder:
        sections += [_ladder_table(result), _power(result)]
    sections += [f"![{title}](plots/{name})" for name, title in plots.items()]
    sections += ["## Arms", _arms_table(result)]
    if any(len(arm.choices) > 1 for arm in result.arms.values()):
        sections += ["## What each arm chose from", (
            "Every arm takes the setting with the lowest loss on the reserved rows, averaged over the tuning seeds "
            f"{', '.join(map(str, study.tuning_seeds))}. The reported rows play no part in it."), _choices_table(result)]
        if edges := _at_the_edge(result):
            sections += ["At the edge of the values that were tried, so the best may lie beyond:", bullets(edges)]
    sections += ["## Budgets", bullets(_budgets(result, study))]
    if failures:
        sections += ["## Failed runs", bullets([f"`{name}`: {reason}" for name, reason in failures.items()])]
    return "\n\n".join(sections) + "\n"


def _caption(result: StudyResult) -> str:
    is_one = max((len(rung.seeds) for rung in result.ladder), default=len(result.seeds)) == 1
    return CAPTION.format(rows=result.rows, drawn=ROWS_ONLY if is_one else BOTH, limit=OF_ONE_SEED if is_one else "")


def _at_the_edge(result: StudyResult) -> list[str]:
    """Arms that chose the lowest or the highest of the numbers tried for a field."""
    found = []
    for name, arm in result.arms.items():
        measured = [choice.settings for choice in arm.choices if choice.reserved_loss is not None]
        chosen = arm.choices[arm.chosen].settings if measured else {}
        for field, value in chosen.items():
            values = [settings[field] for settings in measured]
            tried = sorted({item for item in values if isinstance(item, int | float) and not isinstance(item, bool)})
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                which = "lowest" if value == tried[0] else "highest"
                found.append(f"`{name}` takes {field}={value}, the {which} of {', '.join(map(str, tried))}.")
    return found


def _breaks(result: StudyResult) -> str:
    rung = result.breaks_at()
    if not result.ladder:
        return "The study makes no claims: see the arms."
    if rung is None:
        return f"**All {len(result.ladder)} claims are shown.**"
    number = result.ladder.index(rung) + 1
    return f"**The ladder breaks at claim {number} of {len(result.ladder)}** ({rung.claim}): {_outcome(rung, result)}."


def _outcome(rung: RungResult, result: StudyResult) -> str:
    if rung.difference is None:
        return "no seed has both arms"
    between = f"{rung.difference:+.4f} nats, 95% interval {rung.low:+.4f} to {rung.high:+.4f}"
    return {
        "shown": f"{between}", "reversed": f"the difference has the opposite sign ({between})",
        "not shown": f"the interval includes zero, or the corrected p-value is 0.05 or more ({between})",
        "small": f"it holds, but by less than {result.smallest_effect:g} nats ({between})"}[rung.verdict]


def _ladder_table(result: StudyResult) -> str:
    rows = []
    for number, rung in enumerate(result.ladder, 1):
        if rung.difference is None:
            rows.append([f"{number}. {rung.claim}", "-", "-", "-", "-", rung.verdict])
            continue
        below = sum(value < 0 for value in rung.of_seeds)
        rows.append([
            f"{number}. {rung.claim}", f"{rung.difference:+.4f}", f"[{rung.low:+.4f}, {rung.high:+.4f}]",
            f"{below} of {len(rung.of_seeds)}", p_value_text(rung.corrected), rung.verdict])
    return table(["claim", "difference ↓", "95% interval", "seeds below", "p (Holm)", "verdict"], rows)


def p_value_text(value: float | None) -> str:
    """A p-value with three decimals."""
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _power(result: StudyResult) -> str:
    return (
        f"Stated before the runs: with {len(result.seeds)} seeds and {result.rows:,} rows, a true difference of "
        f"{result.smallest_effect:g} nats gives an interval that excludes zero in {result.power:.0%} of such studies.")


def _arms_table(result: StudyResult) -> str:
    measured = [arm.mean for arm in result.arms.values() if arm.mean is not None]
    best = min(measured, default=None)
    rows = [[
        f"`{name}`", arm.about or arm.model, _loss(arm), "-" if arm.mean is None or best is None else f"{arm.mean - best:+.4f}",
        str(len(arm.losses)), "-" if arm.training_flops is None else f"{arm.training_flops:.2e}",
        _chosen(arm)] for name, arm in result.arms.items()]
    return table(["arm", "what it is", "loss ↓", "over the best", "seeds", "training FLOPs", "chosen"], rows)


def _chosen(arm: ArmResult) -> str:
    if len(arm.choices) > 1 and all(choice.reserved_loss is None for choice in arm.choices):
        return "none of its settings works"
    return _settings(arm.choices[arm.chosen].settings) if arm.choices else "-"


def _loss(arm: ArmResult) -> str:
    if arm.mean is None:
        return "-"
    return f"{arm.mean:.4f}" + (f" ± {arm.spread:.4f}" if arm.spread is not None else "")


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()) or "-"


def _choices_table(result: StudyResult) -> str:
    rows = []
    for name, arm in result.arms.items():
        for number, choice in enumerate(arm.choices):
            if len(arm.choices) > 1:
                mark = " ←" if number == arm.chosen else ""
                loss = "failed" if choice.reserved_loss is None else f"{choice.reserved_loss:.4f}{mark}"
                rows.append([f"`{name}`", _settings(choice.settings), loss])
    return table(["arm", "settings", "reserved loss ↓"], rows)


def _budgets(result: StudyResult, study: StudyConfig) -> list[str]:
    sizes = {len(arm.choices) for arm in result.arms.values()}
    tuned = (
        f"every arm chose among {sizes.pop()} settings" if len(sizes) == 1
        else "arms chose among different numbers of settings: " + ", ".join(
            f"`{name}` {len(arm.choices)}" for name, arm in result.arms.items()))
    return [f"Tuning: {tuned}, at {len(study.tuning_seeds)} seed(s).", f"Reported seeds: {', '.join(map(str, study.seeds))}.",
            "A training's floating-point work counts everything that the arm needs, including all runs of a soup."]
