"""Log-likelihoods of the choices of multiple-choice questions, as samples of the generate stage."""

import json
import logging
from pathlib import Path

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.benchmarks.multiple_choice import ChoiceQuestion, MultipleChoice, likeliest
from xft_core.benchmarks.progress import Progress
from xft_core.data.prompt_text import Tokens
from xft_core.data.row_writing import Row
from xft_core.data.rows import rows_of
from xft_core.data.text_tokens import text_tokens
from xft_core.files.journal import append, read_appended
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import GenerateStage
from xft_core.store.results.generate import Sample
from xft_core.training.held_out import row_losses

logger = logging.getLogger(__name__)


def choice_samples(
    config: GenerateStage, kind: MultipleChoice, problems: list[ChoiceQuestion], tokenizer: PreTrainedTokenizerBase,
    partial: Path,
) -> tuple[dict[str, Sample], int]:
    """Return each problem's sample by task_id, and how many samples this start added. ``partial`` holds the finished samples.

    A choice's log-likelihood is the sum over its tokens after the prompt, in nats, without an end token. It does not depend on
    generate.num_samples or the temperature. Raises CheckpointError.
    """
    samples = {sample.task_id: sample for sample in map(Sample.model_validate, read_appended(partial))}
    waiting = [problem for problem in problems if problem.task_id not in samples]
    if not waiting:
        return samples, 0
    directory = config.inputs()["model"]
    model = load_model(directory, DTYPES[config.generate.precision]).to(device_for_work())  # type: ignore[arg-type]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    progress = Progress(logger, "generate", len(problems), len(problems) - len(waiting))
    for start in range(0, len(waiting), config.generate.batch_size):
        batch = waiting[start:start + config.generate.batch_size]
        texts = [kind.choices(problem, config.prompt_style, tokenizer) for problem in batch]
        tokens = [text_tokens(tokenizer).encode(of_problem) for of_problem in texts]
        fits = [room is None or max(len(item.ids) for item in of_problem) <= room for of_problem in tokens]
        rows = [_row(item) for of_problem, fit in zip(tokens, fits, strict=True) if fit for item in of_problem]
        losses = iter(row_losses(model, rows_of(rows)) if rows else ())
        for problem, of_problem, fit in zip(batch, texts, fits, strict=True):
            values = [-next(losses).nll for _ in of_problem] if fit else []
            samples[problem.task_id] = _sample(problem, of_problem[0].text[:of_problem[0].asked], values)
        append(partial, *(samples[problem.task_id].model_dump() for problem in batch))
        progress.advance(len(batch))
    progress.close()
    return samples, len(waiting)


def _row(tokens: Tokens) -> Row:
    return Row(tokens.ids.tolist(), tokens.prompt_length)


def _sample(problem: ChoiceQuestion, prompt: str, values: list[float]) -> Sample:
    """Build a sample. ``values``: for the choices, then for the letters; empty if prompt and choice exceed the context."""
    number = len(problem.choices)
    found = {"log_likelihoods": values[:number], "letters": values[number:]}
    return Sample(
        task_id=problem.task_id, sample_index=0, prompt=prompt, new_tokens=0,
        completion=problem.choices[likeliest(values[:number])] if values else "", solution=json.dumps(found) if values else "",
        finish_reason="stop" if values else "prompt_too_long")
