"""Results by domain: every model's held-out loss with its interval, where it is worse than the base model's, and which
experts the tokens use. Numbers, sentences and tables; the plots are in domain_plots.py."""

from collections.abc import Iterator

import numpy as np

from xft_core.errors import ArtifactError
from xft_core.recipe.steps import BASE_MODEL, MERGED_MODEL, PREPARED, measuring_role
from xft_core.reporting.pass_rates import rate_text
from xft_core.reporting.run.comparison import Comparison, Domain, DomainLoss, DomainRouting, SourceCounts
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.statistics import measured_interval, ratio
from xft_core.reporting.study.differences import paired_difference
from xft_core.reporting.tables import table
from xft_core.runtime.quantities import fixed, signed
from xft_core.store.results.mix_data import MixtureFile
from xft_core.store.results.row_losses import RowLossesFile, SourceRoutingFile

NOTE = (
    "Held-out loss of each domain in nats per response token, with its 95% interval over rows. * is lower and ! higher "
    "than the base model's: the 95% interval of the paired difference over rows excludes 0. With several domains and models, "
    "some of these signs are due to chance.")


def domains(evidence: Evidence) -> list[Domain]:
    """The domains of a mixture, each with every model's loss; empty without a mixture. Raises ArtifactError for files of
    different rows."""
    mixture = evidence.file(PREPARED, MixtureFile)
    if mixture is None:
        return []
    of_models = {model: content.held_out for model in evidence.models()
                 if (content := evidence.file(measuring_role("row_losses", model), RowLossesFile))}
    data, titles = evidence.recipe.data, evidence.benchmarks()
    of_source = data.source_domains
    found = []
    for name in data.domains:
        places = [place for place, domain in enumerate(of_source) if domain == name]
        at = [row for row, place in enumerate(mixture.held_out) if place in places]
        for model, rows in of_models.items():
            if len(rows) != len(mixture.held_out):
                raise ArtifactError(f"The rows of row_losses_{model} are not those of the mixture: run that step again.")
        losses = {model: [rows[row] for row in at if rows[row][1]] for model, rows in of_models.items()}
        names = [benchmark for place in places for benchmark in data.sources[place].benchmarks]
        found.append(Domain(
            name=name, rows=len(at), train_rows=sum(mixture.sources[place].taken for place in places),
            learned=any(data.is_trained_on(place) and not data.sources[place].replay for place in places),
            benchmarks=[titles[evidence.recipe.evaluate.benchmarks.index(item)] for item in dict.fromkeys(names)],
            losses=[loss for model, rows in losses.items() if rows and (loss := _loss(model, rows, losses.get(BASE_MODEL)))]))
    return found


def source_counts(evidence: Evidence) -> list[SourceCounts]:
    """Counts of every source's rows."""
    mixture = evidence.file(PREPARED, MixtureFile)
    if mixture is None:
        return []
    data = evidence.recipe.data
    return [
        SourceCounts(name=name, domain=domain, licence=source.licence, replay=source.replay, **counts.model_dump())
        for name, domain, source, counts in zip(
            data.source_names, data.source_domains, data.sources, mixture.sources, strict=True)]


def domain_routing(evidence: Evidence) -> list[DomainRouting]:
    """Load of the routed experts on each domain's held-out rows, layer by layer. Several sources are averaged by tokens."""
    content = evidence.file("row_losses_moe", SourceRoutingFile)
    if content is None:
        return []
    found = []
    for name in evidence.recipe.data.domains:
        parts = [
            content.sources[place] for place, domain in enumerate(evidence.recipe.data.source_domains)
            if domain == name and content.sources[place].tokens]
        if parts:
            load = np.average([part.load for part in parts], axis=0, weights=[part.tokens for part in parts])
            found.append(DomainRouting(domain=name, load=load.tolist()))
    return found


def domain_sentences(comparison: Comparison) -> Iterator[str]:
    """The merged model's gain, domain by domain."""
    for domain in comparison.domains:
        loss = domain.loss(MERGED_MODEL)
        if loss is None or loss.difference is None or loss.interval_of_difference is None:
            continue
        low, high = loss.interval_of_difference
        side = "below" if loss.difference < 0 else "above"
        certain = "the interval includes 0" if low <= 0 <= high else "over rows, for this one run"
        yield (f"{domain.name}: the merged model's held-out loss is {fixed(abs(loss.difference), 4)} nats {side} the "
               f"base model's; 95% interval {signed(low, 4)} to {signed(high, 4)}; {certain}.")


def domain_warnings(comparison: Comparison) -> Iterator[str]:
    """Negative transfer (a domain that was trained on got worse), forgetting (one that was not trained on, or only replayed,
    got worse), and domains without a measurement."""
    for domain in comparison.domains:
        if not domain.rows:
            yield (f"The domain {domain.name} has no held-out rows, and so no results: all of them are also held out of "
                   "another source.")
        for loss in domain.losses:
            if not loss.is_worse or loss.difference is None:
                continue
            kind = "Negative transfer" if domain.learned else "Forgetting"
            row = comparison.row(loss.model)
            how = "was trained on" if domain.learned else "was replayed" if domain.train_rows else "was not trained on"
            yield (f"{kind}: {row.name if row else loss.model} is worse than the base model in the domain {domain.name}, which "
                   f"{how}: {signed(loss.difference, 4)} nats per response token.")
    for source in comparison.sources:
        if source.used and source.taken > 4 * source.used:
            yield (f"To reach its share, the source {source.name} uses each row {source.taken / source.used:.1f} times in an "
                   "epoch: it has too few rows. Lower its weight, or give it more rows.")


def domain_table(comparison: Comparison) -> str:
    """A row for each domain, a column for each model; pass rates of the domain's benchmarks below its loss."""
    models = list(dict.fromkeys(loss.model for domain in comparison.domains for loss in domain.losses))
    names = {row.model: row.name for row in comparison.rows} | {row.model: row.name for row in comparison.row_comparisons}
    lines = []
    for domain in comparison.domains:
        cells = []
        for model in models:
            loss = domain.loss(model)
            cells.append("-" if loss is None else _loss_text(loss))
        lines.append([f"{domain.name} NLL ↓", str(domain.rows), *cells])
        for benchmark in domain.benchmarks:
            rates = []
            for model in models:
                row = comparison.row(model)
                score = next((item for item in row.scores if item.benchmark == benchmark), None) if row else None
                rate = score.rate("plus") if score else None
                rates.append(rate_text(rate) if rate else "-")
            lines.append([f"{domain.name}: {benchmark} pass@1 % ↑", "", *rates])
    header = ["domain", "held-out rows", *(names.get(model, model) for model in models)]
    return f"{NOTE}\n\n{table(header, lines)}"


def source_table(comparison: Comparison) -> str:
    """A row for each source, with counts that add up, and a row of sums."""
    total = sum(source.taken for source in comparison.sources)
    lines = [
        [source.name, source.domain, source.licence or "not given", *(f"{number:,}" for number in (
            source.rows_read, source.dropped, source.held_out, source.reserved, source.available - source.used, source.used)),
         f"{source.taken:,}", f"{100 * source.taken / total:.1f}"]
        for source in comparison.sources]
    sums = [sum(item) for item in zip(*(
        (source.rows_read, source.dropped, source.held_out, source.reserved, source.available - source.used, source.used,
         source.taken) for source in comparison.sources), strict=True)]
    lines.append(["together", "", "", *(f"{number:,}" for number in sums), "100.0"])
    header = ["source", "domain", "licence", "rows read", "dropped", "held out", "reserved", "not used", "used",
              "training rows", "share %"]
    return ("Rows read = dropped + held out + reserved + not used + used. Training rows count a row as often as it is "
            "taken.\n\n" + table(header, lines))


def routing_table(comparison: Comparison) -> str:
    """For each domain, the expert whose load is furthest above its mean over all domains."""
    loads_DLE = np.array([item.load for item in comparison.domain_routing])
    excess_DLE = loads_DLE - loads_DLE.mean(0)
    first = 1 if any(layer.mean_shared_weight is not None for layer in comparison.routing) else 0
    lines = []
    for place, item in enumerate(comparison.domain_routing):
        layer, expert = np.unravel_index(excess_DLE[place].argmax(), excess_DLE[place].shape)
        lines.append([
            item.domain, f"layer {layer} expert {expert + first}", f"{100 * loads_DLE[place, layer, expert]:.1f}",
            f"{100 * loads_DLE[:, layer, expert].mean():.1f}", f"{50 * np.abs(excess_DLE[place]).sum(1).mean():.1f}"])
    header = ["domain", "most beyond the mean of domains", "its load %", "mean of domains %", "moved %"]
    return ("Load of the routed experts on the held-out rows of each domain. Moved: share of choices that would have to change "
            "to match the mean of the domains, mean over layers.\n\n" + table(header, lines))


def _loss(model: str, rows: list[tuple[float, int]], base: list[tuple[float, int]] | None) -> DomainLoss | None:
    sums, tokens = [nll for nll, _ in rows], [number for _, number in rows]
    if not np.isfinite(sums).all():
        return None
    nll, error = ratio(sums, tokens)
    difference = None
    if base and model != BASE_MODEL and np.isfinite([nll for nll, _ in base]).all():
        difference = paired_difference(
            np.array([sums]), np.array([[nll for nll, _ in base]]), np.array(tokens), random_seed=0)
    return DomainLoss(
        model=model, nll=nll, interval=measured_interval(nll, error), difference=difference.mean if difference else None,
        interval_of_difference=(difference.low, difference.high) if difference else None)


def _loss_text(loss: DomainLoss) -> str:
    sign = " !" if loss.is_worse else " *" if loss.is_better else ""
    interval = f" [{loss.interval[0]:.4f}, {loss.interval[1]:.4f}]" if loss.interval else ""
    return f"{fixed(loss.nll, 4)}{interval}{sign}"
