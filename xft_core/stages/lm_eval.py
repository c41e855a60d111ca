"""The lm_eval stage: run one task of lm-evaluation-harness (MMLU, HellaSwag, your own) on any model, dense or upcycled.

results.json     version of the harness; for the task and each of its parts, its version, number of questions and examples
                 in the prompt, and every metric with its standard error
samples.jsonl    task, doc_id, the scored answer and its scores (the harness's own fields, without arguments)

The harness is an optional extra, imported here and nowhere else.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xft_core.errors import DataError
from xft_core.generation.completer import end_tokens
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import LmEvalStage
from xft_core.stages.configs.lm_eval import lm_eval_version, unknown_task
from xft_core.store.results.lm_eval import STANDARD_ERROR, LmEvalFile, LmEvalMetrics, TaskResults
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

KEPT = ("doc_id", "target", "filtered_resps", "filter", "metrics")


def run(config: LmEvalStage, workspace: Workspace) -> LmEvalMetrics:
    """Run the stage. Metrics: those of the task under the harness's names (``acc``, ``acc_norm``), each with its
    ``_standard_error`` if the harness gives one, those of the parts of a group as ``part/acc``, and ``questions``.

    Raises DataError if the harness is not installed, does not know the task, or cannot get its data.
    """
    version = lm_eval_version()
    directory = config.directory.absolute() if config.directory else None
    with _in(directory):
        found = _evaluate(config, directory)
    tasks = {name: _task(found, name) for name in sorted(found["results"])}
    if not any(task.metrics for task in tasks.values()):
        raise DataError(f"lm-eval's task {config.task!r} gave no numbers. Is it a group without an aggregate metric?")
    LmEvalFile(lm_eval=version, task=config.task, limit=config.limit, tasks=tasks).write(workspace.output)
    with (workspace.output / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for name, samples in sorted(found["samples"].items()):
            for sample in samples:
                kept = {key: sample[key] for key in KEPT if key in sample}
                scores = {key: sample[key] for key in sample.get("metrics", ()) if key in sample}
                stream.write(json.dumps({"task": name, **kept, **scores}, ensure_ascii=False, default=str) + "\n")
    return LmEvalMetrics(
        scores={
            metric if name == config.task else f"{name}/{metric}": value
            for name, task in tasks.items() for metric, value in task.metrics.items()},
        questions=sum(map(len, found["samples"].values())))


def _evaluate(config: LmEvalStage, directory: Path | None) -> dict[str, Any]:
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The harness reads thousands of files to index the tasks that it ships.
    own_path = str(directory) if directory else None
    manager = TaskManager(include_path=own_path, include_defaults=directory is None)
    if directory and config.task not in manager.all_tasks:
        manager = TaskManager(include_path=own_path)
    if config.task not in manager.all_tasks:
        raise unknown_task(config.task, directory)
    inputs = config.inputs()
    model = load_model(inputs["model"], DTYPES[config.precision]).to(device_for_work())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(inputs["model"])
    ends = set(end_tokens(tokenizer, model.generation_config, model.config.get_text_config()))

    class WithoutEndTokens(HFLM):  # type: ignore[misc]
        """Remove all end tokens: transformers stops at each and keeps it, but the harness knows only the tokenizer's."""

        def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
            whole = [tokens] if isinstance(tokens, int) else list(tokens)
            kept = [token for token in whole if int(token) not in ends] if skip_special_tokens else whole
            return str(super().tok_decode(kept, skip_special_tokens=skip_special_tokens))

    harness_model = WithoutEndTokens(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size)
    try:
        found = simple_evaluate(
            model=harness_model, tasks=[config.task], task_manager=manager, limit=config.limit, bootstrap_iters=1000,
            random_seed=config.seed, numpy_random_seed=config.seed, torch_random_seed=config.seed,
            fewshot_random_seed=config.seed)
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetsError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"lm-eval's task {config.task!r} cannot be run: {type(error).__name__}: {reason}") from error
    assert found is not None
    return dict(found)


def _task(found: dict[str, Any], name: str) -> TaskResults:
    """Return the recorded results of one task or group. The harness writes ``acc,none`` and ``acc_stderr,none``: the metric and
    the answer filter. The filter becomes part of the name unless it is none (``exact_match_flexible-extract``)."""
    metrics: dict[str, float] = {}
    higher_is_better = {}
    for key, value in found["results"][name].items():
        metric, _, answers = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or not answers:
            continue
        plain = metric.removesuffix("_stderr")
        recorded = plain if answers == "none" else f"{plain}_{answers}"
        metrics[recorded if metric == plain else f"{recorded}{STANDARD_ERROR}"] = float(value)
        higher_is_better[recorded] = found["higher_is_better"].get(name, {}).get(plain)
    return TaskResults(
        version=found["versions"].get(name), examples_in_prompt=found["n-shot"].get(name),
        questions=found["n-samples"].get(name, {}).get("effective"), metrics=dict(sorted(metrics.items())),
        higher_is_better=higher_is_better)


@contextlib.contextmanager
def _in(directory: Path | None) -> Iterator[None]:
    """Change to a task directory, because the harness looks for data files relative to the current directory."""
    with contextlib.chdir(directory) if directory else contextlib.nullcontext():
        yield
