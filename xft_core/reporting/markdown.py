"""``comparison.md``: the table first, then what it says, then the evidence in compact tables."""

import math

from xft_core.reporting.comparison import Comparison, LayerMix, Mixing, Row
from xft_core.reporting.evidence import Evidence
from xft_core.reporting.findings import findings, warnings

CAPTION = (
    "↓ lower is better, ↑ higher is better. NLL: negative log-likelihood on held-out rows, nats per response token. "
    "pass@1: % of problems solved ± one standard error; + with the extended tests too.")

DATA_COUNTS = {
    "rows_read": "rows read",
    "train_rows": "rows to train on",
    "train_tokens": "tokens to train on",
    "train_response_tokens": "of these, response tokens (the loss counts these)",
    "held_out_rows": "rows held out",
    "held_out_tokens": "tokens held out",
    "held_out_response_tokens": "of these, response tokens (the NLL counts these)",
    "truncated": "responses cut at data.max_length",
    "dropped_contaminated": "dropped: contains a problem of the benchmark",
    "dropped_no_room": "dropped: the prompt leaves no room for a response",
    "dropped_duplicate": "dropped: duplicate of another row",
    "dropped_empty_response": "dropped: empty response",
}


def comparison_markdown(comparison: Comparison, evidence: Evidence) -> str:
    """The whole text of comparison.md."""
    sections = [f"# {comparison.recipe}: comparison", CAPTION, results_table(comparison)]
    if comparison.rows:
        sections.append("![pass@1 and held-out loss](plots/results.png)")
    noted = warnings(comparison)
    if noted:
        sections += ["## Warnings", bullets(noted)]
    sections += ["## What it says", bullets(findings(comparison) + _conditions(evidence))]
    if comparison.mixing and comparison.mixing.layers:
        sections += ["## Mixing coefficients", _mixing_section(comparison.mixing)]
    if comparison.routing:
        sections += ["## Routed experts, on held-out rows", _routing_table(comparison)]
    if comparison.data:
        sections += ["## Data", _data_table(comparison)]
    return "\n\n".join(sections) + "\n"


def results_table(comparison: Comparison) -> str:
    """Models by rows; aligned, so that it also reads well as plain text."""
    benchmarks = list(dict.fromkeys(score.benchmark for row in comparison.rows for score in row.scores))
    header = ["model", "NLL ↓"]
    header += [f"{benchmark}{plus} pass@1 % ↑" for benchmark in benchmarks for plus in ("", "+")]
    header += ["parameters", "active"]
    lines = []
    for row in comparison.rows:
        cells = [row.name, "-" if row.held_out_nll is None else f"{row.held_out_nll:.4f}"]
        for benchmark in benchmarks:
            cells += _score_cells(row, benchmark)
        lines.append([*cells, _millions(row.parameters_total), _millions(row.parameters_active)])
    return table(header, lines)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with its columns aligned: the first to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [header, rule, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in aligned)


def _score_cells(row: Row, benchmark: str) -> list[str]:
    score = next((score for score in row.scores if score.benchmark == benchmark), None)
    if score is None:
        return ["-", "-"]
    pairs = ((score.base_pass_at_1, score.base_standard_error), (score.plus_pass_at_1, score.plus_standard_error))
    return [
        f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") for value, error in pairs]


def _conditions(evidence: Evidence) -> list[str]:
    recipe = evidence.recipe
    generate = recipe.generate
    found = []
    if generate.base_prompt_style != generate.prompt_style:
        found.append(
            f"The base model is asked in the form it knows ({generate.base_prompt_style} prompt), the tuned ones in "
            f"theirs ({generate.prompt_style} prompt).")
    if recipe.evaluate.max_problems is not None:
        found.append(
            f"Only the first {recipe.evaluate.max_problems} problems of a benchmark were used: this is not its score.")
    return found


def _mixing_section(mixing: Mixing) -> str:
    has_shared = mixing.layers[0].shared is not None
    routed = mixing.layers[0].routed
    header = ["layer", *(["shared"] if has_shared else []), "routed, smallest", "routed, largest", "largest change"]
    rows = [[str(index), *_mix_cells(layer, has_shared)] for index, layer in enumerate(mixing.layers)]
    equal = sum(routed) / max(1, len(routed))
    note = (f"Share of each expert in the merged layer, in %. Method: {mixing.method.replace('_', ' ')}. Equal shares "
            f"of the {len(routed)} routed experts of layer 0 would be {100 * equal:.1f} % each.")
    return note + "\n\n" + table(header, rows) + "\n\n![mixing coefficients](plots/mixing.png)"


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
    note = (f"Load: an expert's share of all choices of a routed expert; equal load is {100 * uniform:.1f} %. Entropy "
            f"of the router: at most {math.log(max(1, experts)):.3f} nats.")
    return note + "\n\n" + table(header, rows) + "\n\n![expert load](plots/expert_load.png)"


def _extremes(values: list[float], first_expert: int) -> tuple[str, str]:
    if not values:
        return "-", "-"
    order = sorted(range(len(values)), key=values.__getitem__)
    low, high = (f"{100 * values[index]:.1f} (expert {index + first_expert})" for index in (order[0], order[-1]))
    return low, high


def _data_table(comparison: Comparison) -> str:
    known = [name for name in DATA_COUNTS if name in comparison.data]
    other = [name for name in comparison.data if name not in DATA_COUNTS]
    rows = [
        [DATA_COUNTS.get(name, name.replace("dropped_", "dropped: ").replace("_", " ")), f"{comparison.data[name]:,}"]
        for name in known + other]
    return table(["what", "count"], rows)


def _millions(parameters: int | None) -> str:
    if parameters is None:
        return "-"
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def bullets(sentences: list[str]) -> str:
    """Sentences as a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
