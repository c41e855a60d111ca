"""Compare useful tokens per second in packed SFT with plain ``transformers.Trainer``, which pads to the longest row of its
batch, and with TRL's packed SFTTrainer, if it is installed (``pip install --no-deps trl``, or PYTHONPATH to a place that has
it).

    python -m performance.sft DATA.json [--model DIR] [--rows 256] [--sequence 1024] [--repeats 3] [--precision fp32]
                              [--only WAY]

All train the same dense model with the same optimizer for one epoch on the same rows, in turns: Trainer with 8 rows per batch,
TRL and ours with one packed sequence, which has about as many tokens. ``--precision bf16_mixed`` trains in 16-bit mixed
precision, TRL's default. ``--only`` runs one way once, in its own process, and prints its peak memory. Useful tokens are those
of prompts and responses, without padding.
"""

import argparse
import contextlib
import io
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from performance.side_by_side import Taken, print_heading, print_table, side_by_side
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.reading import read_conversations
from xft_core.data.rows import Row, Rows, rows_of
from xft_core.data.tokenize import tokenise
from xft_core.demo import DEMO_DIR
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import ChecksConfig, DataConfig, SftConfig
from xft_core.runtime.device import device_for_work
from xft_core.store.curves import MetricsLog
from xft_core.training.trainer import train

ROWS_OF_TRAINER = 8
COLUMNS = ["way", "useful tokens", "of all", "seconds", "tokens/s", "CPU seconds", "ratio", "by CPU time"]
SFT = SftConfig(
    epochs=1, batch_size=1, micro_batch_size=1, optimizer="adamw", precision="fp32", checkpoint_steps=10**6, log_steps=1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="instruction data, for example CodeAlpaca")
    parser.add_argument("--model", type=Path, default=DEMO_DIR / "model", help="default: the demo's")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16_mixed"), default="fp32")
    parser.add_argument("--only", choices=("Trainer, padded", "TRL, packed", "ours, packed"))
    options = parser.parse_args()
    rows = read_rows(options)
    print_heading(f"SFT, {options.model.name}, {options.precision}, {len(rows)} rows of {options.data.name}, at most "
                  f"{options.sequence} tokens")
    ways = ways_of(options.model, rows, options.sequence, options.precision == "bf16_mixed")
    if options.only:
        ways[options.only]()
        print(f"{options.only}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB at the peak")
        return
    print_table(COLUMNS, measure(ways, rows, options.repeats))


def read_rows(options: argparse.Namespace) -> Rows:
    """Return the first rows of the data, as the prepare stage writes them."""
    config = DataConfig(path=str(options.data), max_length=options.sequence)
    conversations = [item for item in read_conversations(config, options.data) if item[-1]["content"].strip()]
    tokenizer = load_tokenizer(options.model)
    found = (tokenise(item, config, tokenizer)[0] for item in conversations[:options.rows])
    return rows_of([row for row in found if row is not None])


def ways_of(model: Path, rows: Rows, sequence: int, bf16: bool = False) -> dict[str, Callable[[], None]]:
    """Return the ways to compare by name, with TRL if it is installed. ``bf16``: in 16-bit mixed precision."""
    ways: dict[str, Callable[[], None]] = {"Trainer, padded": partial(train_padded, model, rows, bf16)}
    if find_spec("trl"):
        ways["TRL, packed"] = partial(train_with_trl, model, rows, sequence, bf16)
    return ways | {"ours, packed": partial(train_packed, model, rows, sequence, bf16)}


def measure(ways: dict[str, Callable[[], None]], rows: Rows, repeats: int) -> list[list[object]]:
    """Return the table's rows."""
    taken = side_by_side(ways, repeats, warm_up=False)
    lengths, useful = rows.lengths(), sum(rows.lengths())
    padded = sum(
        max(lengths[start:start + ROWS_OF_TRAINER]) * len(lengths[start:start + ROWS_OF_TRAINER])
        for start in range(0, len(lengths), ROWS_OF_TRAINER))
    # One packed sequence in a batch: nothing to pad.
    kept = {"Trainer, padded": useful / padded, "TRL, packed": 1.0, "ours, packed": 1.0}
    plain = taken["Trainer, padded"]

    def line(name: str, item: Taken) -> list[object]:
        return [name, useful, f"{kept[name]:.0%}", item.seconds, f"{useful / item.seconds:.0f}", item.cpu_seconds,
                plain.seconds / item.seconds, plain.cpu_seconds / item.cpu_seconds]

    return [line(name, item) for name, item in taken.items()]


def train_packed(model: Path, rows: Rows, sequence: int, bf16: bool = False) -> None:
    """Train one epoch with our trainer, including loading the model."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_model(model, torch.float32).to(device_for_work())
        metrics = MetricsLog(Path(scratch) / "metrics.jsonl")
        sft = SFT.model_copy(update={"precision": "bf16_mixed" if bf16 else "fp32"})
        train(loaded, PackedRows(rows, sequence, packing=True), sft, 0, Path(scratch), metrics, ChecksConfig())


def train_with_trl(model: Path, rows: Rows, sequence: int, bf16: bool = False) -> None:
    """Train with TRL's SFTTrainer and its best-fit packing, with a loss on responses only."""
    from datasets import Dataset
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    examples = [rows[index] for index in range(len(rows))]
    data = Dataset.from_dict({
        "input_ids": [ids.tolist() for ids, _ in examples],
        "completion_mask": [[int(place >= prompt) for place in range(len(ids))] for ids, prompt in examples]})
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrlConfig(
            output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=1, packing=True, max_length=sequence,
            completion_only_loss=True, report_to="none", learning_rate=SFT.learning_rate, optim="adamw_torch",
            max_grad_norm=SFT.max_grad_norm, disable_tqdm=True, logging_steps=1000, save_strategy="steps", save_steps=10**6,
            seed=0, use_cpu=not torch.cuda.is_available(), bf16=bf16, gradient_checkpointing=False)
        SFTTrainer(
            model=load_model(model, torch.float32), args=arguments, train_dataset=data,
            processing_class=load_tokenizer(model)).train()


def train_padded(model: Path, rows: Rows, bf16: bool = False) -> None:
    """Train with unchanged transformers' Trainer, with labels for responses only."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArguments(
            output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=ROWS_OF_TRAINER, report_to="none",
            learning_rate=SFT.learning_rate, optim="adamw_torch", max_grad_norm=SFT.max_grad_norm, disable_tqdm=True,
            logging_steps=1000, save_strategy="steps", save_steps=10**6, seed=0, remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(), bf16=bf16)
        Trainer(
            model=load_model(model, torch.float32), args=arguments, train_dataset=[rows[index] for index in range(len(rows))],
            data_collator=_padded).train()


def _padded(examples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    shape = (len(examples), max(len(ids) for ids, _ in examples))
    ids_BS, mask_BS, labels_BS = (torch.full(shape, value) for value in (0, 0, IGNORED))
    for number, (ids, prompt_length) in enumerate(examples):
        ids_BS[number, :len(ids)], mask_BS[number, :len(ids)] = ids, 1
        labels_BS[number, prompt_length:len(ids)] = ids[prompt_length:]
    return {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BS}


def random_rows(vocabulary: int, number: int, longest: int) -> Rows:
    """Return rows with lengths distributed like those of instruction data (log-normal, median 120 tokens)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(number).log_normal_(4.8, 0.7, generator=generator).clamp(16, longest).int().tolist()
    ids = [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return rows_of([Row(row, len(row) // 3) for row in ids])


if __name__ == "__main__":
    main()
