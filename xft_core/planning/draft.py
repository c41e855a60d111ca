"""A first recipe for a model and data, with values derived from them and from the machine, and otherwise the paper's."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.find import find_benchmark
from xft_core.data.reading import read_conversations
from xft_core.data.templates import Message
from xft_core.data.tokenize import tokenise
from xft_core.errors import DataError, XftError
from xft_core.files.locate import find_file
from xft_core.files.parsing import parse_json
from xft_core.models.tokenizer import load_tokenizer
from xft_core.planning.fit import advice
from xft_core.planning.machine import Machine
from xft_core.planning.shape import read_shape
from xft_core.recipe.load import apply_overrides, parse
from xft_core.recipe.sections import DataConfig, Recipe
from xft_core.runtime.quantities import size

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

SAMPLE = 2000  # rows that are tokenised
STEP = 64  # tokens that data.max_length is rounded up to
LONGEST = 4096  # tokens: longer rows are cut unless the recipe says otherwise
FEWEST_STEPS = 50  # optimizer steps per epoch, for which the batch may be smaller than the paper's
FOUND_BY_NAME = ("humaneval", "mbpp")


@dataclass
class Draft:
    """Fields by ``section.field``, and the reasons for some of their values."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: Any, reason: str = "") -> None:
        """Set a field, optionally with the reason for its value."""
        self.values[name] = value
        if reason:
            self.reasons[name] = reason

    def recipe(self) -> Recipe:
        """The recipe with these fields. Raises RecipeError."""
        return parse(Recipe, apply_overrides({}, [f"{name}={json.dumps(value)}" for name, value in self.values.items()]))


def draft(
    name: str, model: str, directory: Path, data: str, benchmarks: Sequence[str], machine: Machine,
) -> Draft:
    """Draft a recipe called ``name`` for a model with its files in ``directory``, and for data in a file.

    Every row is read, and some are tokenised. Raises CheckpointError for a model that cannot be read, DataError for data that
    cannot be read or does not fit the model.
    """
    made = Draft()
    made.set("name", name)
    made.set("model.path", model)
    made.set("data.path", data)
    tokenizer = load_tokenizer(directory)
    path = find_file(data)
    rows, turns, sample = 0, 0, list[list[Message]]()
    for messages in read_conversations(DataConfig(path=data), path):
        rows, turns = rows + 1, max(turns, len(messages))
        if len(sample) < SAMPLE and messages[-1]["content"].strip():
            sample.append(messages)
    if not sample:
        raise DataError(f"{data!r} has no row with a response. Use data with an instruction and a response in each row.")
    lengths = _choose_template(made, tokenizer, sample, turns)
    _choose_lengths(made, lengths, _context(directory))
    _choose_split_and_batch(made, rows, lengths)
    _choose_precision(made, machine)
    _choose_benchmarks(made, benchmarks)
    shape = read_shape(directory / "config.json")
    for change in advice(made.recipe(), shape, machine).removeprefix("To make it fit: ").split():
        changed, is_change, value = change.partition("=")
        if is_change:
            made.set(changed, parse_value(value), f"to use less memory: this machine has {size(machine.for_models)}.")
    return made


def parse_value(text: str) -> Any:
    """Parse a value as overrides do."""
    return apply_overrides({}, [f"value={text}"])["value"]


def _choose_template(
    made: Draft, tokenizer: "PreTrainedTokenizerBase", sample: list[list[Message]], turns: int,
) -> list[int]:
    """Choose data.template and return the lengths of the sample with it, in tokens."""
    has_chat = tokenizer.chat_template is not None
    if has_chat:
        made.set("data.template", "chat", "the model's tokenizer has a chat template, so the tuned model remains a chat model.")
    elif turns > 2:
        raise DataError(
            f"{made.values['data.path']!r} has conversations of {turns} messages, but the tokenizer of "
            f"{made.values['model.path']!r} has no chat template for them. Use data with one instruction and one "
            "response in each row, or a model with a chat template.")
    else:
        made.set("data.template", "magicoder", "the model's tokenizer has no chat template.")
    config = DataConfig(template=made.values["data.template"], max_length=LONGEST)
    lengths = [len(row.input_ids) for row, _ in (tokenise(messages, config, tokenizer) for messages in sample) if row]
    if not lengths:
        raise DataError(
            f"No row of {made.values['data.path']!r} has a prompt that leaves room for a response in {LONGEST} tokens.")
    return sorted(lengths)


def _choose_lengths(made: Draft, lengths: list[int], context: int | None) -> None:
    most = lengths[min(len(lengths) - 1, math.floor(0.99 * len(lengths)))]
    wanted = max(2 * STEP, math.ceil(most / STEP) * STEP)
    reason = f"99% of {len(lengths):,} sampled rows have at most {most:,} tokens."
    if context is not None and context < wanted:
        wanted, reason = context, f"{reason} The model's context is {context:,} tokens."
    made.set("data.max_length", wanted, reason)


def _choose_split_and_batch(made: Draft, rows: int, lengths: list[int]) -> None:
    held_out = max(1, min(DataConfig().held_out_rows, rows // 5))
    made.set("data.held_out_rows", held_out, f"the data has {rows:,} rows.")
    sequences = max(1.0, (rows - held_out) * sum(lengths) / len(lengths) / made.values["data.max_length"])
    paper = Recipe().sft
    batch = paper.batch_size
    while batch > 1 and sequences / batch < FEWEST_STEPS:
        batch //= 2
    made.set("sft.epochs", paper.epochs)
    steps = max(1.0, sequences / batch)
    made.set("sft.batch_size", batch, f"about {sequences:,.0f} packed sequences give {steps:,.0f} steps per epoch.")
    made.set("sft.micro_batch_size", min(paper.micro_batch_size, batch))
    made.set(
        "sft.learning_rate", paper.learning_rate, "the paper's, for a model of 1.3B parameters; smaller models need more.")
    made.set("upcycle.num_experts", Recipe().upcycle.num_experts)
    made.set("upcycle.num_experts_per_tok", Recipe().upcycle.num_experts_per_tok)
    made.set("merge.method", Recipe().merge.method)
    made.set("merge.shared_expert_weight", Recipe().merge.shared_expert_weight)


def _choose_precision(made: Draft, machine: Machine) -> None:
    on_cpu = machine.device_memory is None
    for name in ("sft.precision", "merge.precision", "generate.precision"):
        made.set(name, "fp32" if on_cpu else "bf16", "this machine has no accelerator." if on_cpu else "")


def _choose_benchmarks(made: Draft, benchmarks: Sequence[str]) -> None:
    if benchmarks:
        for name in benchmarks:
            find_benchmark(name)
        made.set("evaluate.benchmarks", list(benchmarks))
        return
    found = [name for name in FOUND_BY_NAME if _is_here(name)]
    made.set("evaluate.benchmarks", found, "the benchmarks on this machine." if found else (
        "none is on this machine; `xft fetch humaneval` downloads one. Without one, models are compared by held-out loss."))


def _is_here(benchmark: str) -> bool:
    try:
        find_benchmark(benchmark)
    except XftError:
        return False
    return True


def _context(directory: Path) -> int | None:
    """The context length of a model; None if its configuration does not give it."""
    found = parse_json((directory / "config.json").read_bytes())
    value = found.get("max_position_embeddings") if isinstance(found, dict) else None
    return value if isinstance(value, int) and value > 0 else None
