"""The prepare stage: instruction data to token sequences for training and for the held-out loss.

Leaves train.safetensors and held_out.safetensors (see rows.py), the same as text for people (train.jsonl,
held_out.jsonl), response_end.json (what ends a response), and decontamination.json: what was dropped because a benchmark
has it, and why.
"""

import json
import logging
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.artifacts import Workspace
from xft_core.config import DataConfig
from xft_core.data.formats import read_conversations
from xft_core.data.response_end import response_ends, save_response_ends
from xft_core.data.rows import Row, save_rows
from xft_core.data.templates import Message, training_texts
from xft_core.errors import DataError
from xft_core.models import load_tokenizer
from xft_core.stages import PrepareStage

logger = logging.getLogger(__name__)


def run(config: PrepareStage, workspace: Workspace) -> dict[str, Any]:
    """The stage. Metrics: rows read, dropped (by reason), truncated, in each split, and their tokens.

    Raises DataError for data that cannot be used, or of which nothing is left.
    """
    inputs = config.inputs()
    conversations = list(read_conversations(config.data, inputs.get("data")))
    if not conversations:
        raise DataError(f"The data {config.data.path!r} holds no rows.")
    counts = {"rows_read": len(conversations)}
    kept = [item for item in conversations if item[-1]["content"].strip()]
    counts["dropped_empty_response"] = len(conversations) - len(kept)
    unique = list({json.dumps(item): item for item in kept}.values())
    counts["dropped_duplicate"] = len(kept) - len(unique)
    benchmarks = [path for name, path in inputs.items() if name.startswith("benchmark_")]
    clean = _decontaminated(unique, benchmarks, workspace.output / "decontamination.json")
    counts["dropped_contaminated"] = len(unique) - len(clean)
    random.Random(config.seed).shuffle(clean)
    clean = clean[:config.data.max_rows]
    tokenizer = load_tokenizer(inputs["tokenizer"])
    rows, truncated = tokenised(clean, config.data, tokenizer)
    counts["truncated"] = truncated
    fitting = [(conversation, row) for conversation, row in zip(clean, rows, strict=True) if row is not None]
    counts["dropped_no_room"] = len(clean) - len(fitting)
    if len(fitting) < 2:
        raise DataError(
            f"Of {len(conversations)} rows of {config.data.path!r}, {len(fitting)} are left; at least 2 are needed, one to "
            f"train on and one to hold out. Dropped: {counts}.")
    _save_ends(fitting, config.data, tokenizer, workspace.output)
    num_held_out = max(1, min(config.data.held_out_rows, len(fitting) // 5))
    splits = {"held_out": fitting[:num_held_out], "train": fitting[num_held_out:]}
    for name, split in splits.items():
        save_rows(workspace.output / f"{name}.safetensors", [row for _, row in split])
        (workspace.output / f"{name}.jsonl").write_text(
            "".join(json.dumps({"messages": conversation}, ensure_ascii=False) + "\n" for conversation, _ in split),
            encoding="utf-8")
        counts[f"{name}_rows"] = len(split)
        counts[f"{name}_tokens"] = sum(len(row.input_ids) for _, row in split)
        counts[f"{name}_response_tokens"] = sum(len(row.input_ids) - row.prompt_length for _, row in split)
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    logger.info(
        "prepare: %d rows read, %d dropped, %d to train on (%d tokens), %d held out", counts["rows_read"], dropped,
        counts["train_rows"], counts["train_tokens"], counts["held_out_rows"])
    return counts


def _save_ends(
    fitting: list[tuple[list[Message], Row]], config: DataConfig, tokenizer: PreTrainedTokenizerBase, output: Path,
) -> None:
    """Leave response_end.json, and say where a tuned model will not stop as its template has it."""
    ends = response_ends((row for _, row in fitting), config.max_length, tokenizer)
    save_response_ends(output, ends, tokenizer)
    if not ends:
        logger.warning(
            "prepare: every response is cut off at data.max_length (%d): a model that is tuned on them does not learn to stop",
            config.max_length)
    if config.template == "chat" and training_texts(fitting[0][0], config.template, tokenizer)[2]:
        logger.warning(
            "prepare: the chat template ends a response with no token of its own. The end-of-sequence token (%s) is put after "
            "it, so that a tuned model can stop", tokenizer.eos_token)


def tokenise(messages: list[Message], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Row | None, bool]:
    """One conversation as ``(row, truncated)``. A response that does not fit is cut (and then has no end token);
    a prompt that leaves no room for any of it gives None."""
    prompt, response, needs_end_token = training_texts(messages, config.template, tokenizer)
    prompt_ids = prompt.token_ids(tokenizer)
    response_ids = tokenizer(response, add_special_tokens=False).input_ids
    if needs_end_token:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so a response could never end")
        response_ids = [*response_ids, tokenizer.eos_token_id]
    room = config.max_length - len(prompt_ids)
    if room < 1:
        return None, False
    return Row(prompt_ids + response_ids[:room], len(prompt_ids)), len(response_ids) > room


def tokenised(
    conversations: list[list[Message]], config: DataConfig, tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Row | None], int]:
    """Every conversation as ``tokenise`` has it, and how many were truncated. Raises DataError, naming the row."""
    rows: list[Row | None] = []
    truncated = 0
    for messages in conversations:
        try:
            row, cut = tokenise(messages, config, tokenizer)
        except DataError as error:
            raise DataError(f"{config.path!r}, the row that begins {messages[0]['content'][:60]!r}: {error}") from None
        rows.append(row)
        truncated += cut
    return rows, truncated


def _decontaminated(conversations: list[list[Message]], benchmarks: list[Path], report: Path) -> list[list[Message]]:
    texts = [[message["content"] for message in conversation] for conversation in conversations]
    found = {}
    if benchmarks:
        from xft_core.data.decontaminate import find_contaminated

        found = find_contaminated(texts, benchmarks)
    dropped = [asdict(overlap) | {"row": texts[index]} for index, overlap in sorted(found.items())]
    report.write_text(json.dumps({
        "benchmarks": [path.name for path in benchmarks], "rows_checked": len(conversations), "dropped": dropped,
    }, indent=1, ensure_ascii=False), encoding="utf-8")
    return [item for index, item in enumerate(conversations) if index not in found]
