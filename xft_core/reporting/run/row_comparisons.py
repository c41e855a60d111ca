"""Every model's held-out loss against the merged model's, row by row, with the cost of each training: numbers, sentences and
a table."""

import math
from collections.abc import Iterator

import numpy as np

from xft_core.errors import ArtifactError
from xft_core.recipe.steps import MERGED_MODEL, MOE_MODEL, PREPARED, measuring_role
from xft_core.reporting.run.comparison import Comparison, RowComparison
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.study.differences import paired_difference
from xft_core.reporting.tables import table
from xft_core.runtime.quantities import fixed, signed
from xft_core.store.results.mix_data import MixtureFile
from xft_core.store.results.report import RunRowsFile
from xft_core.store.results.row_losses import RowLossesFile, RowLossesMetrics

SAME = 0.05  # tokens or work that differ by less than this share count as equal: steps are integers
NOTE = (
    "Held-out loss of the merged model minus that of each other model, in nats per response token (below 0: the merged model "
    "is better), with its 95% interval over rows. Tokens and work (floating-point operations) are those of the training, "
    "relative to the merged model's, which include its Mixture-of-Experts and mixing. This is one run: the intervals do not "
    "cover the variation between trainings.")


def measured_rows(evidence: Evidence) -> RunRowsFile | None:
    """The loss of every row under every model with measured rows and finite losses; None if the merged model is not among
    them. Raises ArtifactError for a broken file, or for files of different rows."""
    of_models = {
        model: content.held_out for model in evidence.models()
        if (content := evidence.file(measuring_role("row_losses", model), RowLossesFile))
        and all(math.isfinite(nll) for nll, _ in content.held_out)}
    if MERGED_MODEL not in of_models:
        return None
    tokens = {model: [number for _, number in rows if number] for model, rows in of_models.items()}
    for model, of_model in tokens.items():
        if of_model != tokens[MERGED_MODEL]:
            raise ArtifactError(f"The rows of row_losses_{model} are not those of row_losses_merged: run both again.")
    metrics = {model: item for model in of_models if (item := _metrics(evidence, model))}
    mixture = evidence.file(PREPARED, MixtureFile)
    of_source = evidence.recipe.data.source_domains
    of_domains = {} if mixture is None else {"domains": [
        of_source[place] for place, (_, number) in zip(mixture.held_out, of_models[MERGED_MODEL], strict=True) if number]}
    return RunRowsFile(
        tokens=tokens[MERGED_MODEL], **of_domains,
        losses={model: [nll for nll, number in rows if number] for model, rows in of_models.items()},
        reserved_nll={model: item.reserved_nll for model, item in metrics.items() if item.reserved_nll is not None},
        training_flops={model: item.training_flops for model, item in metrics.items() if item.training_flops is not None})


def _metrics(evidence: Evidence, model: str) -> RowLossesMetrics | None:
    return evidence.metrics(measuring_role("row_losses", model), RowLossesMetrics)


def row_comparisons(evidence: Evidence) -> list[RowComparison]:
    """Every model with measured rows against the merged one. Empty if the merged model's rows were not measured."""
    rows = measured_rows(evidence)
    if rows is None:
        return []
    measured = {model: _metrics(evidence, model) for model in rows.losses}
    of_merged, found = measured[MERGED_MODEL], []
    assert of_merged is not None
    for model, losses in rows.losses.items():
        of_model = measured[model]
        assert of_model is not None
        difference = None if model == MERGED_MODEL else paired_difference(
            np.array([rows.losses[MERGED_MODEL]]), np.array([losses]), np.array(rows.tokens), random_seed=0)
        found.append(RowComparison(
            model=model, name=evidence.model_name(model), held_out_nll=math.fsum(losses) / sum(rows.tokens),
            difference=difference.mean if difference else None,
            interval=(difference.low, difference.high) if difference else None,
            p_value=difference.p_value if difference else None,
            training_tokens=of_model.training_tokens, training_flops=of_model.training_flops,
            reserved_nll=of_model.reserved_nll, equal_tokens=_equal(of_model.training_tokens, of_merged.training_tokens),
            equal_flops=_equal(of_model.training_flops, of_merged.training_flops)))
    return found


def row_sentences(comparison: Comparison) -> Iterator[str]:
    """The merged model against the best model trained on as many tokens, and with as much work."""
    for title, chosen in (
        ("At equal tokens", [item for item in comparison.row_comparisons if item.equal_tokens]),
        ("At equal floating-point work", [item for item in comparison.row_comparisons if item.equal_flops]),
    ):
        others = [item for item in chosen if item.difference is not None and item.model != MOE_MODEL
                  and not item.model.startswith("merged_wise")]  # these are partly the merged model
        if not others:
            continue
        chosen_apart = all(item.reserved_nll is not None for item in others)
        best = min(others, key=lambda item: item.reserved_nll if item.reserved_nll is not None else item.held_out_nll)
        assert best.difference is not None and best.interval is not None
        low, high = best.interval
        certain = "the interval over rows includes 0: no difference can be claimed" if low <= 0 <= high else (
            "over rows, for this one training")
        how = "chosen on reserved rows" if chosen_apart else "found by looking at these rows"
        among = f", the best of {len(others)} ({how})" if len(others) > 1 else ""
        side = "lower" if best.difference < 0 else "higher"
        size = fixed(abs(best.difference), 4)
        yield (f"{title}: the merged model's held-out loss is {size} nats {side} than that of {best.name}{among}; 95% "
               f"interval {signed(low, 4)} to {signed(high, 4)}; {certain}.")


def row_table(comparison: Comparison) -> str:
    """A table with one row per model."""
    merged = next(item for item in comparison.row_comparisons if item.model == MERGED_MODEL)
    lines = [
        [item.name, f"{item.held_out_nll:.4f}",
         "-" if item.difference is None else signed(item.difference, 4),
         "-" if item.interval is None else f"{signed(item.interval[0], 4)} to {signed(item.interval[1], 4)}",
         _share(item.training_tokens, merged.training_tokens), _share(item.training_flops, merged.training_flops),
         " and ".join(name for name, equal in (("tokens", item.equal_tokens), ("work", item.equal_flops)) if equal) or "-"]
        for item in comparison.row_comparisons]
    header = ["model", "NLL \u2193", "merged minus it", "95% interval", "tokens", "work", "equal"]
    return f"{NOTE}\n\n{table(header, lines)}"


def _equal(one: float | None, other: float | None) -> bool:
    return bool(one and other) and math.isclose(one or 0, other or 0, rel_tol=SAME)


def _share(one: float | None, whole: float | None) -> str:
    return "-" if one is None or not whole else fixed(one / whole, 2)
