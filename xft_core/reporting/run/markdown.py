"""``comparison.md``: the results table first, then the findings, then the evidence in compact tables."""

import math
from collections.abc import Mapping
from typing import Any

from xft_core.benchmarks.decontaminate import NGRAM_WORDS
from xft_core.recipe.sections.merge import OPERATORS
from xft_core.reporting.page import PAGE
from xft_core.reporting.pass_rates import MCNEMAR, p_text, points_text, rate_text
from xft_core.reporting.run.comparison import Comparison, Decontamination, Difference, LayerMix, Measure, Mixing
from xft_core.reporting.run.domain_plots import TRADE_OFF_NOTE
from xft_core.reporting.run.domains import domain_table, routing_table, source_table
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.run.findings import findings, main_differences, model_name, test_name, warnings
from xft_core.reporting.run.multilingual import PAPER_LANGUAGES, Average
from xft_core.reporting.run.row_comparisons import row_table
from xft_core.reporting.run.token_classes import token_class_table
from xft_core.reporting.tables import bullets, table
from xft_core.runtime.quantities import fixed, parameters

CAPTION = (
    "↓ lower is better, ↑ higher is better. NLL: negative log-likelihood on held-out rows, nats per response token. "
    "pass@k: % of problems solved in k attempts; + includes the extended tests. In brackets: 95% confidence interval over "
    "problems, rows or questions.")
SHOWN_PROBLEMS, SHOWN_ROWS = 12, 5
PICTURES = {"results": "pass@1 and held-out loss", "loss": "training and held-out loss", "mixing": "mixing coefficients",
            "expert_load": "expert load", "token_classes": "shared expert by class of token",
            "domains": "held-out loss by domain", "domain_routing": "experts by domain",
            "trade_off": "trade-off between domains"}

# The rows read, by what happened to them, in processing order. The other counts of prepare come after their sum.
ROW_PARTS = {
    "dropped_empty_response": "dropped: empty response",
    "dropped_unusable": "dropped: cannot be used (refused.json)",
    "dropped_duplicate": "dropped: duplicate of another row",
    "dropped_contaminated": "dropped: contains a problem of a benchmark",
    "dropped_held_out": "dropped: also in data.held_out_path",
    "dropped_reserved": "dropped: also in data.reserved_path",
    "dropped_no_room": "dropped: the prompt leaves no room for a response",
    "not_used": "not used (data.max_rows)",
    "held_out_rows": "rows held out",
    "reserved_rows": "rows reserved to choose by",
    "train_rows": "rows to train on",
}
OF_MIXTURE = {
    "dropped_held_out": "dropped: held out or reserved of another source",
    "dropped_duplicate": "dropped: duplicate of another row, of any source",
    "not_used": "not used (the source's share is smaller)"}
SPLITS = ("held_out_rows", "reserved_rows", "train_rows")
OTHER_COUNTS = {
    "train_tokens": "tokens to train on",
    "train_response_tokens": "of these, response tokens (the loss counts these)",
    "held_out_tokens": "tokens held out",
    "held_out_response_tokens": "of these, response tokens (the NLL counts these)",
    "reserved_tokens": "tokens reserved to choose by",
    "truncated": "responses cut at data.max_length",
    "control_token_text": "rows with text that spells a control token (it stays text)",
    "earlier_turns_unused": "conversations with earlier answers, which are not learned",
    "control_tokens_from_text": "rows in which text became a control token",
    "turn_marker_text": "rows with text that spells the chat template's mark of an answer",
    "boundary_forced": "rows with prompt and response tokenised apart",
    "held_out_rows_read": "rows read of data.held_out_path",
    "held_out_dropped_empty_response": "of data.held_out_path dropped: empty response",
    "held_out_dropped_duplicate": "of data.held_out_path dropped: duplicate of another row",
    "held_out_dropped_contaminated": "of data.held_out_path dropped: contains a problem of a benchmark",
    "held_out_dropped_no_room": "of data.held_out_path dropped: the prompt leaves no room for a response",
    "reserved_rows_read": "rows read of data.reserved_path",
    "reserved_dropped_empty_response": "of data.reserved_path dropped: empty response",
    "reserved_dropped_duplicate": "of data.reserved_path dropped: duplicate of another row",
    "reserved_dropped_contaminated": "of data.reserved_path dropped: contains a problem of a benchmark",
    "reserved_dropped_held_out": "of data.reserved_path dropped: also in data.held_out_path",
    "reserved_dropped_no_room": "of data.reserved_path dropped: the prompt leaves no room for a response",
}


def comparison_markdown(comparison: Comparison, evidence: Evidence, plots: frozenset[str]) -> str:
    """The text of comparison.md. ``plots``: names of the plots that were drawn."""
    sections = [f"# {comparison.recipe}: comparison", CAPTION, results_table(comparison)]
    sections += picture("results", plots)
    noted = warnings(comparison)
    if noted:
        sections += ["## Warnings", bullets(noted)]
    sections += ["## What it says", bullets(findings(comparison) + _conditions(comparison, evidence))]
    if comparison.row_comparisons:
        sections += ["## At equal tokens and at equal work", row_table(comparison)]
    if comparison.domains:
        sections += ["## Domains", domain_table(comparison), *picture("domains", plots)]
    if comparison.domain_routing:
        sections += ["## Routed experts by domain", routing_table(comparison), *picture("domain_routing", plots)]
    if "trade_off" in plots:
        sections += ["## Between the base model and the tuned ones", TRADE_OFF_NOTE, *picture("trade_off", plots)]
    sections += groups_sections(comparison)
    if comparison.differences:
        sections += ["## Problem by problem", _differences_section(comparison)]
    if "loss" in plots:
        sections += ["## Training", "Training and held-out loss over optimizer steps.", *picture("loss", plots)]
    if comparison.mixing and comparison.mixing.layers:
        sections += ["## Mixing coefficients", _mixing_section(comparison.mixing), *picture("mixing", plots)]
    if comparison.routing:
        sections += ["## Routed experts, on held-out rows", _routing_table(comparison), *picture("expert_load", plots)]
    if comparison.token_classes:
        sections += ["## The shared expert by class of token", token_class_table(comparison), *picture("token_classes", plots)]
    if comparison.data:
        sections += ["## Data", _data_table(
            comparison.data, evidence.recipe.data.max_rows, OF_MIXTURE if comparison.sources else {})]
    if comparison.sources:
        sections += ["## Sources", source_table(comparison)]
    if comparison.decontamination and comparison.decontamination.benchmarks:
        sections += ["## Decontamination", _decontamination_section(comparison.decontamination)]
    if comparison.further:
        lines = [[item.role, name, _number(value)] for item in comparison.further for name, value in item.metrics.items()]
        sections += ["## Further stages", table(["stage", "metric", "value"], lines)]
    return "\n\n".join(sections) + "\n"


def picture(name: str, plots: frozenset[str]) -> list[str]:
    """The line that shows a plot; empty if it was not drawn."""
    return [f"![{PICTURES[name]}](plots/{name}.png)"] if name in plots else []


def results_table(comparison: Comparison) -> str:
    """A table with a column for each model and a row for each measure, so its width does not depend on the number of
    benchmarks. It also reads well as plain text."""
    rows = comparison.rows
    lines = [["NLL ↓", *("-" if row.held_out_nll is None else f"{row.held_out_nll:.4f}" for row in rows)]]
    for benchmark in comparison.benchmarks:
        of_models = [next((score for score in row.scores if score.benchmark == benchmark), None) for row in rows]
        there = [score for score in of_models if score]
        if not there:
            if benchmark in comparison.skipped:
                lines.append([f"{benchmark} pass@1 % ↑", *("skipped" for _ in rows)])
            continue
        for tests in ("base", "plus") if there[0].extended_tests else ("plus",):
            for k in sorted({rate.k for score in there for rate in score.pass_at_k}):
                cells = [score.text(tests, k) if score else "-" for score in of_models]
                lines.append([f"{test_name(comparison, benchmark, tests)} pass@{k} % ↑", *cells])
    for average in comparison.multilingual:
        values = [average.pass_at_1.get(row.model) for row in rows]
        cells = ["-" if value is None else fixed(100 * value, 1) for value in values]
        lines.append([f"{average.title} pass@1 % ↑", *cells])
    lines += _measure_lines(comparison)
    lines += [
        ["parameters", *(_parameters(row.parameters_total) for row in rows)],
        ["active per token", *(_parameters(row.parameters_active) for row in rows)]]
    return table(["", *(row.name for row in rows)], lines)


def _measure_lines(comparison: Comparison) -> list[list[str]]:
    of_models = [_numbered(row.measures) for row in comparison.rows]
    lines = []
    for key, measure in {key: item for found in of_models for key, item in found.items()}.items():
        title = measure.title
        arrow = {True: " ↑", False: " ↓", None: ""}[measure.higher_is_better]
        lines.append([title + arrow, *(_measure_text(found.get(key)) for found in of_models)])
    return lines


def _numbered(measures: list[Measure]) -> dict[tuple[str, int], Measure]:
    """Measures by title and position among those with the same title, so that the table loses none."""
    titles = [measure.title for measure in measures]
    return {(item.title, titles[:place].count(item.title)): item for place, item in enumerate(measures)}


def _measure_text(measure: Measure | None) -> str:
    return "-" if measure is None else f"{fixed(measure.value, 4)}{_interval_text(measure.interval)}"


def _interval_text(interval: tuple[float, float] | None) -> str:
    return f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""


def groups_sections(comparison: Comparison) -> list[str]:
    """A table for each benchmark and criterion that its problems are grouped by, for example the libraries of DS-1000."""
    sections = []
    for benchmark in comparison.benchmarks:
        scores = [next((score for score in row.scores if score.benchmark == benchmark), None) for row in comparison.rows]
        groups = [{(group.criterion, group.name): group for group in score.groups} if score else {} for score in scores]
        for criterion in dict.fromkeys(criterion for found in groups for criterion, _ in found):
            names = dict.fromkeys(key for found in groups for key in found if key[0] == criterion)
            lines = [
                [f"{key[1]} ({max(found[key].problems for found in groups if key in found)})",
                 *(rate_text(found[key].rate) if key in found else "-" for found in groups)]
                for key in names]
            sections += [
                f"## {benchmark} by {criterion}", "pass@1 in %. The number in brackets after a name is its number of problems.",
                table([criterion, *(row.name for row in comparison.rows)], lines)]
    return sections






def _differences_section(comparison: Comparison) -> str:
    shown = [item for item in comparison.differences if item.tests == "plus"]
    rows = [
        [test_name(comparison, item.benchmark, item.tests), model_name(comparison, item.model),
         model_name(comparison, item.against), points_text(item.pair.difference), str(len(item.pair.better_on)),
         str(len(item.pair.worse_on)), p_text(item.pair.p_value)]
        for item in shown]
    tests = " and ".join(dict.fromkeys(item.pair.test for item in shown))
    note = (f"Difference: pass@1 of the model minus that of the other, in points, over the same problems. Better on and worse "
            f"on: numbers of problems. p: two-sided, {tests}.")
    lists = [
        _only_sentence(comparison, item) for item in main_differences(comparison)
        if item.pair.better_on or item.pair.worse_on]
    link = f"All problems with their answers and verdicts, side by side: [{PAGE}]({PAGE})."
    header = ["benchmark", "model", "against", "difference", "better on", "worse on", "p"]
    return "\n\n".join([note, table(header, rows), *([bullets(lists)] if lists else []), link])


def _only_sentence(comparison: Comparison, item: Difference) -> str:
    """The problems that only one of two models solves; with several samples, those that it solves more often."""
    template = "only {} solves {}" if item.pair.test == MCNEMAR else "{} more often solves {}"
    parts = [
        template.format(model_name(comparison, model), _some(problems))
        for model, problems in ((item.model, item.pair.better_on), (item.against, item.pair.worse_on)) if problems]
    return f"{test_name(comparison, item.benchmark, item.tests)}: {'; '.join(parts)}."


def _some(problems: list[str]) -> str:
    more = len(problems) - SHOWN_PROBLEMS
    return ", ".join(problems[:SHOWN_PROBLEMS]) + (f" and {more} more" if more > 0 else "")


def _decontamination_section(found: Decontamination) -> str:
    dropped = found.dropped
    text = (f"{found.rows_checked:,} rows were searched for the problems of {', '.join(found.benchmarks)}: for a "
            f"complete wording or solution (substring), and for {NGRAM_WORDS} consecutive words that only one problem has "
            "(n-gram). ")
    if not dropped:
        return text + "None had to be dropped."
    rows = [
        [benchmark, *(str(sum((item.benchmark, item.kind) == (benchmark, kind) for item in dropped))
                      for kind in ("substring", "n_gram")),
         str(len({item.task_id for item in dropped if item.benchmark == benchmark}))]
        for benchmark in dict.fromkeys(found.benchmarks)]
    examples = [
        f"{item.task_id} ({item.kind.replace('_', '-')}): {_code(item.excerpt)}, in the row {_code(item.row)}"
        for item in dropped[:SHOWN_ROWS]]
    return "\n\n".join([
        text + f"{len(dropped)} were dropped. comparison.json lists all of them, and decontamination.json of the prepare stage "
        "(data/ in MLflow) has their full text.",
        table(["benchmark", "substring", "n-gram", "problems concerned"], rows), bullets(examples)])


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    """Text of unknown origin as inline code."""
    text = " ".join(text.split()).replace("`", "'")
    return f"`{text if len(text) <= 120 else text[:117] + '...'}`"


def _conditions(comparison: Comparison, evidence: Evidence) -> list[str]:
    recipe = evidence.recipe
    base_style, style = recipe.generate.base_prompt_style, recipe.prompt_style
    theirs = "theirs" if style == recipe.data.template else "one other than theirs"
    found = []
    if base_style != style:
        found.append(
            f"The base model is prompted in the form it knows ({base_style} prompt), the tuned models in "
            f"{theirs} ({style} prompt).")
    if recipe.evaluate.max_problems is not None:
        found.append(
            f"Only the first {recipe.evaluate.max_problems} problems of each benchmark were used: these are not full scores.")
    if comparison.multilingual:
        found.append(_languages_sentence(comparison.multilingual))
    return found


def _languages_sentence(multilingual: list[Average]) -> str:
    parts = [f"{average.title}: {', '.join(average.languages)}" for average in multilingual]
    return (f"Averages over languages give every problem the same weight. {'; '.join(parts)}. The paper's 6 are "
            f"{', '.join(PAPER_LANGUAGES)}.")


def _mixing_section(mixing: Mixing) -> str:
    has_shared = mixing.layers[0].shared is not None
    routed = mixing.layers[0].routed
    header = ["layer", *(["shared"] if has_shared else []), "routed, smallest", "routed, largest", "largest change"]
    rows = [[str(index), *_mix_cells(layer, has_shared)] for index, layer in enumerate(mixing.layers)]
    equal = sum(routed) / max(1, len(routed))
    note = (f"Share of each expert in the merged layer, in %. Method: {mixing.method.replace('_', ' ')}. Equal shares "
            f"of the {len(routed)} routed experts of layer 0 would be {100 * equal:.1f} % each.")
    if mixing.method in OPERATORS:
        note += " The method only starts from these shares: the merged weights are not the mean with them."
    return note + "\n\n" + table(header, rows)


def _mix_cells(layer: LayerMix, has_shared: bool) -> list[str]:
    shared = [f"{100 * layer.shared:.1f}"] if has_shared and layer.shared is not None else []
    smallest, largest = _extremes(layer.routed, first_expert=1 if has_shared else 0)
    return [*shared, smallest, largest, "-" if layer.movement is None else f"{100 * layer.movement:.1f}"]


def _routing_table(comparison: Comparison) -> str:
    experts = len(comparison.routing[0].load)
    rows = []
    for index, layer in enumerate(comparison.routing):
        shared = layer.mean_shared_weight
        smallest, largest = _extremes(layer.load, first_expert=0 if shared is None else 1)
        shared_cell = "-" if shared is None else f"{100 * shared:.1f}"
        rows.append([str(index), smallest, largest, f"{layer.entropy:.3f}", shared_cell])
    header = ["layer", "smallest load %", "largest load %", "entropy, nats", "mean shared weight %"]
    uniform = sum(comparison.routing[0].load) / max(1, experts)
    note = (f"Load: an expert's share of all choices of a routed expert; equal load is {100 * uniform:.1f} %. The router's "
            f"entropy is at most {math.log(max(1, experts)):.3f} nats.")
    if comparison.expert_delta_cosine is not None:
        note += (" Cosine of the learned changes of two experts, mean over pairs and layers: "
                 f"{comparison.expert_delta_cosine:.3f} (1: identical).")
    return note + "\n\n" + table(header, rows)


def _extremes(values: list[float], first_expert: int) -> tuple[str, str]:
    if not values:
        return "-", "-"
    order = sorted(range(len(values)), key=values.__getitem__)
    low, high = (f"{100 * values[index]:.1f} (expert {index + first_expert})" for index in (order[0], order[-1]))
    return low, high


def _data_table(counts: dict[str, int], max_rows: int | None, names: Mapping[str, str] = {}) -> str:
    """What happened to the rows read, with the sum; then all other counts. ``names``: labels of counts that have another
    meaning here."""
    # Rows from separate files are not among the rows read.
    elsewhere = [f"{split}_rows" for split in ("held_out", "reserved") if f"{split}_rows_read" in counts]
    parts = [name for name in counts
             if (name in ROW_PARTS or name.startswith("dropped_") or "max_rows" in name) and name not in elsewhere]
    parts.sort(key=lambda name: (name in SPLITS, [*ROW_PARTS, name].index(name)))
    lines = [(names.get(name) or ROW_PARTS.get(name, _words(name)), counts[name]) for name in parts]
    if "rows_read" in counts:
        again = counts.get("repeated_rows", 0)
        left = counts["rows_read"] + again - sum(counts[name] for name in parts)
        if left:
            is_rest = max_rows is not None and left > 0
            lines.append((f"not used: more than data.max_rows ({max_rows:,})" if is_rest else "not accounted for", left))
        together = "together, the rows read" if not again else "together, the rows read and those taken again"
        lines = [("rows read", counts["rows_read"]), *([("taken again (data.sources)", again)] if again else []), *lines,
                 (together, counts["rows_read"] + again)]
    others = [name for name in counts if name not in parts and name not in ("rows_read", "repeated_rows")]
    others.sort(key=lambda name: [*OTHER_COUNTS, name].index(name))
    lines += [(OTHER_COUNTS.get(name) or ROW_PARTS.get(name) or _words(name), counts[name]) for name in others]
    return table(["what", "count"], [[what, f"{count:,}"] for what, count in lines])


def _words(name: str) -> str:
    return name.replace("dropped_", "dropped: ").replace("_", " ")


def _parameters(number: int | None) -> str:
    return "-" if number is None else parameters(number)


