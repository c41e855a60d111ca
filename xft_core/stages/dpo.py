"""The dpo stage: tune a dense model to prefer its passing answers to its failing ones."""

import logging
import random
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from transformers import PreTrainedModel

from xft_core.benchmarks.registry import kind_of
from xft_core.data.response_end import load_response_ends
from xft_core.data.row_writing import Row
from xft_core.data.rows import load_rows, rows_of
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import CheckpointError, DataError
from xft_core.files.digests import model_files
from xft_core.files.locate import find_model
from xft_core.models.config import DTYPES, is_moe
from xft_core.models.generation_defaults import add_end_tokens
from xft_core.models.loading import copy_beside_weights, load_model, load_tokenizer
from xft_core.recipe.checks import preference_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import DpoStage
from xft_core.store.curves import MetricsLog
from xft_core.store.results.dpo import DpoMetrics
from xft_core.store.results.evaluate import EvaluationFile
from xft_core.store.results.generate import Sample, generated_samples
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss
from xft_core.training.preferences import DpoTrainer, Pairs, log_chances_of, margins
from xft_core.training.trainer import train

logger = logging.getLogger(__name__)


def run(config: DpoStage, workspace: Workspace) -> DpoMetrics:
    """Tune and write the model, and measure its held-out loss before and after.

    If no problem has both a passing and a failing answer, the model is written unchanged, byte for byte, and its one
    measurement counts for both."""
    source, dpo = find_model(config.model), config.dpo
    if is_moe(source):
        raise CheckpointError(f"{config.model!r} is a Mixture-of-Experts. DPO is for dense models: merge it first.")
    problems = [*_answered(config, source)]
    rows: list[Row] = []
    with_pairs = 0
    for task_id, passing, failing in problems:
        pairs = [*product(passing, failing)]
        with_pairs += bool(pairs)
        random.Random(f"{config.seed}/{task_id}").shuffle(pairs)
        rows += [row for pair in pairs[:dpo.pairs_per_problem] for row in pair]
    counts = {
        "problems_with_pairs": with_pairs, "problems_without_pairs": len(problems) - with_pairs,
        "answers_passing": sum(len(passing) for _, passing, _ in problems),
        "answers_failing": sum(len(failing) for _, _, failing in problems)}
    model = load_model(source, DTYPES[dpo.precision]).to(device_for_work())  # type: ignore[arg-type]
    held_out_rows = load_rows(config.data, "held_out")
    before = held_out_loss(model, held_out_rows).nll
    if not rows:
        return _unchanged(source, workspace.output, model, before, counts)
    pairs_of_rows = Pairs(rows_of(rows))
    pairs_of_rows.reference_R = log_chances_of(model, pairs_of_rows, dpo.micro_batch_size)
    logger.info("dpo: %d pairs of %d problems", len(pairs_of_rows), with_pairs)
    metrics_log = MetricsLog(workspace.metrics_path)
    metrics_log.begin()
    training = train(model, pairs_of_rows, dpo.training(), config.seed, workspace.checkpoints, metrics_log, config.checks,
                     trainer=partial(DpoTrainer, beta=dpo.beta))
    assert training is not None  # there is one process
    margin_P = margins(log_chances_of(model, pairs_of_rows, dpo.micro_batch_size), pairs_of_rows.reference_R)
    after = held_out_loss(model, held_out_rows).nll
    logger.info("dpo: held-out loss %.4f before, %.4f after", before, after)
    model.config.use_cache = True
    model.save_pretrained(workspace.output)
    copy_beside_weights(source, workspace.output)
    add_end_tokens(workspace.output, model.generation_config, load_response_ends(config.data) or [])
    return DpoMetrics(
        **dict(training), **counts, pairs=len(pairs_of_rows), preferred=float((margin_P > 0).float().mean()),
        held_out_nll_before=before, held_out_nll=after,
        parameters=model.num_parameters())


def _unchanged(source: Path, output: Path, model: PreTrainedModel, nll: float, counts: dict[str, int]) -> DpoMetrics:
    """Write the model unchanged, because there are no pairs."""
    for path in model_files(source):
        shutil.copyfile(path, output / path.name)
    copy_beside_weights(source, output)
    metrics = DpoMetrics(
        **counts, pairs=0, preferred=None, steps=0, train_loss=None, tokens_per_second=None, dead_expert_steps=None,
        diverged_at_step=None, held_out_nll_before=nll, held_out_nll=nll, parameters=model.num_parameters())
    for finding in preference_findings(metrics, ChecksConfig()):
        logger.warning("dpo: %s", finding)
    return metrics


def _answered(config: DpoStage, source: Path) -> Iterator[tuple[str, list[Row], list[Row]]]:
    """Yield every problem with its passing and its failing answers as rows, without duplicates. Answers that were cut off or
    could not be graded are left out. Raises DataError if the verdicts are missing."""
    results = EvaluationFile.read(config.verdicts)
    if results is None or results.skipped:
        raise DataError(f"{str(config.verdicts)!r} holds no verdicts on {config.benchmark!r}. Grade the answers first.")
    benchmark, tokenizer = config.inputs()["benchmark"], load_tokenizer(source)
    kind = kind_of(benchmark)
    verdicts = {problem.task_id: problem.samples for problem in results.problems}
    taught = load_response_ends(config.data) or [tokenizer.eos_token_id]  # a chat template may have its own end token
    end = [token for token in taught[:1] if token is not None]
    samples: dict[str, list[Sample]] = {}
    for sample in generated_samples(config.samples):
        samples.setdefault(sample.task_id, []).append(sample)
    for problem in kind.load_problems(benchmark):
        if problem.task_id not in samples or problem.task_id not in verdicts:
            continue
        prompt = prompt_token_ids(kind.build_prompt(problem, config.prompt_style, tokenizer), tokenizer)
        found: dict[str, dict[str, Row]] = {"pass": {}, "fail": {}}
        for sample, graded in zip(samples[problem.task_id], verdicts[problem.task_id], strict=True):
            verdict = "fail" if graded.plus == "timeout" else graded.plus
            if verdict in found and sample.finish_reason == "stop" and sample.completion:
                answer = tokenizer(sample.completion, add_special_tokens=False).input_ids
                found[verdict][sample.completion] = Row([*prompt, *answer, *end], len(prompt))
        yield problem.task_id, [*found["pass"].values()], [*found["fail"].values()]
