"""The training rows that a router starts from, each labelled with an expert (UpIT, arXiv 2410.01610).

If the experts are branches, a row's label is the branch that was tuned on it, and every branch has equally many rows. If they
are checkpoints, it is the checkpoint with the lowest loss on the row. The seed alone chooses the rows.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from xft_core.data.rows import Rows, load_rows
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.planning.work import router_start_rows
from xft_core.recipe.sections import Precision
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.own_rows import own_rows
from xft_core.training.held_out import check_rows_fit, row_losses

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledRows:
    """Rows in any number of pieces; ``labels``: for each row of each piece, the number of its expert, from 0."""

    pieces: Sequence[Rows]
    labels: Sequence[Sequence[int]]
    num_experts: int

    @property
    def rows_of_experts(self) -> list[int]:
        """Number of rows with each label."""
        return [sum(of_piece.count(expert) for of_piece in self.labels) for expert in range(self.num_experts)]

    @property
    def tokens_of_experts(self) -> list[int]:
        """Number of tokens with each label."""
        tokens = [0] * self.num_experts
        for piece, of_piece in zip(self.pieces, self.labels, strict=True):
            for length, label in zip(piece.lengths(), of_piece, strict=True):
                tokens[label] += length
        return tokens


def labelled_rows(config: UpcycleStage, experts: Sequence[Path]) -> LabelledRows:
    """Choose and label rows for the routed ``experts``. Raises DataError for rows that do not fit these models."""
    assert config.data is not None, "the stage's configuration ensures this"
    number = len(experts)
    training_rows = load_rows(config.data, "train")
    wanted = router_start_rows(len(training_rows))
    if config.rows_of_experts:
        of_branches = [own_rows(config.data, config.rows_of_experts[str(expert)], config.seed, config.clusters)
                       for expert in range(1, number + 1)]
        pieces = [_some(rows, math.ceil(wanted / number), config.seed) for rows in of_branches]
        labels = [[expert] * len(piece) for expert, piece in enumerate(pieces)]
    else:
        pieces = [_some(training_rows, wanted, config.seed)]
        losses_EB = [[loss.nll for loss in row_losses(loaded(directory, config.precision, pieces), pieces[0])]
                     for directory in experts]
        labels = [[losses.index(min(losses)) for losses in zip(*losses_EB, strict=True)]]
    found = LabelledRows(pieces, labels, number)
    counts = found.rows_of_experts
    logger.info("upcycle: the router starts from %d rows; per expert: %s", sum(counts), ", ".join(map(str, counts)))
    return found


def loaded(directory: Path, precision: Precision, pieces: Sequence[Rows]) -> PreTrainedModel:
    """Load a model where work is done, in evaluation mode. Raises DataError for rows that do not fit it."""
    model = load_model(directory, DTYPES[precision])
    check_rows_fit(model, list(pieces))
    return model.to(device_for_work()).eval()  # type: ignore[arg-type]


def _some(rows: Rows, number: int, seed: int) -> Rows:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.select(sorted(order[:number].tolist()))
