"""The nll stage: negative log-likelihood per response token of any model on any instruction data. Writes nll.json."""

import logging
import random
import shutil
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from xft_core.data.reading import conversations_of, sequences_of
from xft_core.data.row_writing import write_rows
from xft_core.data.rows import Rows
from xft_core.data.tokenize import BITS
from xft_core.errors import DataError
from xft_core.files.data_files import files_of
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.models.tokenizer_files import reads_pictures
from xft_core.reporting.statistics import ratio
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import NllStage
from xft_core.store.results.nll import NllFile, NllMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import row_losses

logger = logging.getLogger(__name__)


def run(config: NllStage, workspace: Workspace) -> NllMetrics:
    """Run the stage. Raises DataError for data that cannot be used, CheckpointError for a broken model."""
    inputs = config.inputs()
    if reads_pictures(inputs["model"]):
        raise DataError(
            f"{config.model!r} reads pictures, but this stage measures only rows of text. Leave evaluate.held_out_data empty: "
            "the held-out rows of the data are measured with their pictures.")
    directory = workspace.checkpoints / "rows"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    rows, truncated, dropped = read_rows(config, load_tokenizer(inputs["model"]), directory)
    shutil.rmtree(directory)
    model = load_model(inputs["model"], DTYPES[config.precision]).to(device_for_work())  # type: ignore[arg-type]
    losses = row_losses(model, rows)
    nll, error = ratio([loss.nll for loss in losses], [loss.tokens for loss in losses])
    NllFile(nll=nll, standard_error=error, rows=[(loss.nll, loss.tokens) for loss in losses]).write(workspace.output)
    logger.info("nll: %.4f nats per response token over %d rows", nll, len(losses))
    return NllMetrics(
        nll=nll, rows=len(losses), response_tokens=sum(loss.tokens for loss in losses), truncated=truncated, dropped=dropped,
        nll_standard_error=error)


def read_rows(config: NllStage, tokenizer: Any, directory: Path) -> tuple[Rows, int, int]:
    """Return the data as token sequences, and how many rows were truncated and dropped. ``directory`` holds temporary texts."""
    data = config.data
    read = conversations_of(data, files_of(config.inputs(), "data"), directory, tokenizer)
    indices, num_rows = np.arange(len(read)), read.rows
    if data.max_rows is not None:
        numbers = array("q", range(read.rows))
        random.Random(data.split_seed).shuffle(numbers)
        chosen = np.frombuffer(numbers, dtype=np.int64)[:data.max_rows]
        answered = chosen[np.isin(chosen, read.numbers)]
        indices, num_rows = np.searchsorted(read.numbers, answered), len(chosen)
    sequences, places = sequences_of(read, indices, data, tokenizer, directory)
    fitting = places[sequences.lengths(places) > 0]
    if not len(fitting):
        raise DataError(
            f"None of the {num_rows} rows of {data.path!r} can be measured: each needs a response, and room for some of it "
            f"within data.max_length ({data.max_length}).")
    path = directory / "rows.safetensors"
    write_rows(path, sequences.pieces.read(fitting), sequences.lengths(fitting), sequences.prompt_lengths[fitting])
    truncated = int(np.count_nonzero(sequences.notes[fitting] & BITS["truncated"]))
    return Rows(**load_file(path)), truncated, num_rows - len(fitting)
