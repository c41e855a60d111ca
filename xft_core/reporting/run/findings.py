"""Findings and warnings in plain sentences that claim no more certainty than the numbers support."""

from collections.abc import Iterator

from xft_core.recipe.checks import DEAD_LOAD, worse_than_base
from xft_core.recipe.steps import BASE_MODEL, DPO, MERGED_MODEL, MOE_MODEL, SFT_MODEL
from xft_core.reporting.pass_rates import certainty, p_text
from xft_core.reporting.run.comparison import Comparison, Difference, Mixing, MixingOptions
from xft_core.reporting.run.domains import domain_sentences, domain_warnings
from xft_core.reporting.run.row_comparisons import row_sentences
from xft_core.runtime.quantities import fixed

MANY_TRUNCATED = 0.1
DATA_WARNINGS = {
    "dropped_unusable": (
        "rows cannot be used and were dropped. refused.json of the prepare stage gives the reason for some of them."),
    "earlier_turns_unused": (
        "conversations have earlier assistant answers. These serve as context only: the model learns just the last answer."),
    "control_tokens_from_text": (
        "rows contain text that spells a control token and was tokenised as one: this tokenizer cannot prevent it."),
    "turn_marker_text": (
        "rows contain the text that begins an answer in the chat template, so a model cannot distinguish it from a turn."),
    "boundary_forced": (
        "rows have no token boundary where the response begins: their prompt and response were tokenised separately, as they "
        "are at generation."),
}
TELLING = (0.05, 0.95)  # outside this range, a benchmark is too hard or too easy to tell models apart


def findings(comparison: Comparison) -> list[str]:
    """One or two sentences on each topic: solved problems, held-out loss, mixing, cost, certainty."""
    found = [difference_sentence(comparison, item) for item in main_differences(comparison)]
    found += _held_out_sentences(comparison)
    found += domain_sentences(comparison)
    found += row_sentences(comparison)
    found += _mixing_sentences(comparison)
    if comparison.training_compute_ratio is not None:
        found.append(
            f"Training the MoE took about {comparison.training_compute_ratio:.1f} times as much computation as the dense "
            "SFT (steps times active parameters per token).")
    found.append(
        f"This is one run with one seed ({comparison.seed}). Intervals and tests cover the choice of problems, not the "
        "randomness of training, and p-values are not corrected for multiple comparisons. Repeat with other seeds before you "
        "claim an effect.")
    return found


def main_differences(comparison: Comparison) -> list[Difference]:
    """The merged model against plain SFT on every benchmark, or against the base model if there was no SFT."""
    return [
        found[0] for benchmark in dict.fromkeys(item.benchmark for item in comparison.differences)
        if (found := [item for item in comparison.differences if (item.benchmark, item.tests) == (benchmark, "plus")])]


def difference_sentence(comparison: Comparison, item: Difference) -> str:
    """How two models differ on one benchmark, and whether the difference is distinguishable from zero."""
    model, against = model_name(comparison, item.model), model_name(comparison, item.against)
    where = test_name(comparison, item.benchmark, item.tests)
    if not item.pair.better_on and not item.pair.worse_on:
        return f"{where}: {model} and {against} solve the same problems."
    if item.pair.difference:
        size = fixed(abs(100 * item.pair.difference), 1)
        text = f"{where}: {model} solves {size} points {'more' if item.pair.difference > 0 else 'fewer'} than {against}"
    else:
        text = f"{where}: {model} solves as many problems as {against}"
    if item.pair.problems < max(
            score.problems for row in comparison.rows for score in row.scores if score.benchmark == item.benchmark):
        text += f" on the {item.pair.problems} problems that were graded for both"
    text += f" (better on {_count(len(item.pair.better_on), 'problem')}, worse on {len(item.pair.worse_on)}"
    p_value = p_text(item.pair.p_value)
    shown = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
    return f"{text}; {item.pair.test}, {shown}): {certainty(item.pair.p_value)}."


def test_name(comparison: Comparison, benchmark: str, tests: str) -> str:
    """``HumanEval+`` for the extended tests of HumanEval; the plain name for a benchmark without such tests."""
    extended = any(
        score.extended_tests for row in comparison.rows for score in row.scores if score.benchmark == benchmark)
    return f"{benchmark}+" if tests == "plus" and extended else benchmark


def warnings(comparison: Comparison) -> list[str]:
    """What a user must know before using the merged model."""
    return [*comparison.choices, *_data_warnings(comparison), *_loss_warnings(comparison), *domain_warnings(comparison),
            *_went_wrong_warnings(comparison), *_routing_warnings(comparison), *_evaluation_warnings(comparison)]


def _held_out_sentences(comparison: Comparison) -> Iterator[str]:
    rows = {row.model: row.held_out_nll for row in comparison.rows if row.held_out_nll is not None}
    if MERGED_MODEL not in rows:
        return
    against = [
        _than(rows[MERGED_MODEL] - rows[model], model_name(comparison, model))
        for model in (SFT_MODEL, MOE_MODEL, BASE_MODEL) if model in rows]
    if against:
        yield (f"Held-out loss: {model_name(comparison, 'merged')} has {rows['merged']:.4f} nats per response token, "
               f"{_join(against)}.")


def _than(difference: float, other: str) -> str:
    if not difference:
        return f"the same as {other}"
    return f"{fixed(abs(difference), 4)} {'lower' if difference < 0 else 'higher'} than {other}"


def _mixing_sentences(comparison: Comparison) -> Iterator[str]:
    mixing = comparison.mixing
    if mixing is None:
        return
    if mixing.held_out_nll_uniform is not None and mixing.held_out_nll_merged is not None:
        gain = mixing.held_out_nll_uniform - mixing.held_out_nll_merged
        yield (f"{_name_of_mixing(mixing)} against uniform mixing: held-out loss {mixing.held_out_nll_merged:.4f} against "
               f"{mixing.held_out_nll_uniform:.4f} nats per response token, "
               + (f"{fixed(gain, 4)} lower." if gain > 0 else f"{fixed(-gain, 4)} higher." if gain < 0 else "no difference."))
    if mixing.movement_max is not None and mixing.method == "learned":
        mean = "" if mixing.movement_mean is None else f"{mixing.movement_mean:.3f} on average, "
        moved = "differ from uniform mixing" if mixing.options and mixing.options.predicted else "moved"
        yield f"The mixing coefficients {moved} by {mean}{mixing.movement_max:.3f} at most (shares between 0 and 1)."
    if mixing.options:
        yield from _option_sentences(mixing, mixing.options)


def _name_of_mixing(mixing: Mixing) -> str:
    """What a sentence compares with uniform mixing."""
    if mixing.options and mixing.options.predicted:
        return "Predicted"
    return "Learned" if mixing.method == "learned" else f"Merging by {mixing.method.replace('_', ' ')}"


def _option_sentences(mixing: Mixing, options: MixingOptions) -> Iterator[str]:
    if options.headroom is not None and options.headroom_threshold is not None:
        enough = options.headroom >= options.headroom_threshold
        yield (f"Headroom before learning: the best probed coefficients that can be learned are {fixed(options.headroom, 4)} "
               f"nats below uniform mixing ({options.headroom_threshold:g} required): "
               + ("there was something to learn." if enough else "there was nothing to learn, so uniform mixing was used."))
        if options.best_probe and options.best_probe_learnable is False and options.best_probe_gain and (
                options.best_probe_gain >= options.headroom_threshold):
            yield (f"The headroom test found {fixed(options.best_probe_gain, 4)} nats at {options.best_probe}, which this "
                   "recipe does not learn.")
    elif options.kept_uniform:
        yield ("With its penalty, the objective of the learned shares was no lower than that of uniform mixing, so uniform "
               "mixing was used.")
    if options.uniform_penalty is not None:
        yield f"Cross-validation chose a uniform_penalty of {options.uniform_penalty:g}."
    if options.delta_scale_mean is not None and options.held_out_nll_unscaled is not None and (
            mixing.held_out_nll_merged is not None):
        how = "learned" if options.delta_scale_learned else "given"
        yield (f"Scaled towards the base model by {options.delta_scale_mean:.3f} ({how}): held-out loss "
               f"{mixing.held_out_nll_merged:.4f} against {options.held_out_nll_unscaled:.4f} nats per response token "
               "unscaled.")


def _data_warnings(comparison: Comparison) -> Iterator[str]:
    if comparison.benchmarks and comparison.decontamination and not comparison.decontamination.benchmarks:
        yield ("The training data was not searched for the benchmarks' problems (data.decontaminate is off): scores may "
               "reflect memorised answers.")


    for name, sentence in DATA_WARNINGS.items():
        if comparison.data.get(name):
            yield f"Data: {comparison.data[name]:,} {sentence}"


def _loss_warnings(comparison: Comparison) -> Iterator[str]:
    row = comparison.row(BASE_MODEL)
    base = row.held_out_nll if row else None
    for row in comparison.rows:
        if base is not None and row.held_out_nll is not None and row.held_out_nll > base:
            yield worse_than_base(row.name, row.held_out_nll, base)


def _went_wrong_warnings(comparison: Comparison) -> Iterator[str]:
    for model, sentences in comparison.went_wrong.items():
        # Sentences on mixing and DPO name their subject; those on the two trainings do not.
        prefix = "" if model in (MERGED_MODEL, DPO) else f"{model_name(comparison, model)}: "
        yield from (f"{prefix}{sentence}" for sentence in sentences)


def _routing_warnings(comparison: Comparison) -> Iterator[str]:
    first_routed = 1 if any(layer.mean_shared_weight is not None for layer in comparison.routing) else 0
    dead = [
        f"layer {layer_index} expert {expert_index}"
        for layer_index, layer in enumerate(comparison.routing)
        for expert_index, load in enumerate(layer.load, start=first_routed) if load < DEAD_LOAD]
    if dead:
        shown = ", ".join(dead[:8]) + (f" and {len(dead) - 8} more" if len(dead) > 8 else "")
        yield f"{_count(len(dead), 'routed expert')} with a load under {DEAD_LOAD:.0%} on held-out rows: {shown}."


def _evaluation_warnings(comparison: Comparison) -> Iterator[str]:
    for benchmark, reason in comparison.skipped.items():
        yield f"{benchmark} was skipped: {reason}. It does not count as 0 and is in no average. The answers are kept."
    low, high = TELLING
    for benchmark in dict.fromkeys(score.benchmark for row in comparison.rows for score in row.scores):
        values = [
            rate.value for row in comparison.rows for score in row.scores
            if score.benchmark == benchmark and (rate := score.rate("plus"))]
        if not values:
            continue
        if max(values) < low or min(values) > high:
            yield f"{benchmark} is too {'hard' if max(values) < low else 'easy'} to tell these models apart."
    for row in comparison.rows:
        for score in row.scores:
            if score.infrastructure_errors:
                yield (f"{row.name} on {score.benchmark}: {_count(score.infrastructure_errors, 'answer')} could not be "
                       "graded (infrastructure errors), which the score leaves out: results.json says what was missing.")
            if score.truncated and score.truncated > MANY_TRUNCATED * score.samples:
                yield (f"{row.name} on {score.benchmark}: {score.truncated} of {score.samples} answers were cut at "
                       "generate.max_new_tokens.")


def model_name(comparison: Comparison, model: str) -> str:
    """The name of a model in a sentence."""
    row = comparison.row(model)
    return {BASE_MODEL: "the base model", MOE_MODEL: "the MoE"}.get(model) or (row.name if row else model)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
