"""Direct preference optimization (DPO, arXiv 2305.18290, equation 7) on the trainer of fine-tuning.

    L = -log sigmoid(beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

p: the model; q: the model at the start; log p of a response: the sum over its tokens, given the prompt. Each optimizer step
minimises the mean of L over its pairs. TRL is not used: for this one equation, it would add a second trainer, whose checkpoints
do not resume bit for bit. Shape suffixes: P pairs, R rows (chosen and rejected in turn), S tokens,
V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.training.response_loss import OF_TEXT, model_inputs
from xft_core.training.trainer import XftTrainer


class Pairs(PackedRows):
    """Pairs of rows: row 2i is preferred to row 2i + 1. ``reference_R``: log q of each row's response, fp32."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows, max(rows.lengths()), packing=False)
        self.sequences = [[2 * number, 2 * number + 1] for number in range(len(rows) // 2)]
        self.reference_R = torch.zeros(len(rows))

    def collate(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        """The rows of some pairs, each its own sequence, with ``reference`` (R,)."""
        rows = [row for pair in sequences for row in pair]
        return super().collate([[row] for row in rows]) | {"reference": self.reference_R[rows]}


class DpoTrainer(XftTrainer):
    """Minimises the loss above."""

    def __init__(self, *given: Any, beta: float) -> None:
        super().__init__(*given)
        self.beta = beta

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device,
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """The batches of one optimizer step, and its pairs."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, torch.tensor(sum(len(batch["input_ids"]) // 2 for batch in batches), device=device)

    def compute_loss(  # type: ignore[override]
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The sum of L over the pairs of one forward pass, divided by the number of pairs in the whole step."""
        assert num_items_in_batch is not None and not return_outputs
        self._tokens += int(inputs["token_mask"].sum())
        margin_P = margins(response_log_chances(self.model, inputs, forward=model), inputs["reference"])
        return dpo_loss(margin_P, self.beta).sum() / num_items_in_batch


def dpo_loss(margin_P: torch.Tensor, beta: float) -> torch.Tensor:
    """L of pairs, from the gain of the chosen answer over the rejected one, in nats."""
    return -F.logsigmoid(beta * margin_P)


def margins(log_chance_R: torch.Tensor, reference_R: torch.Tensor) -> torch.Tensor:
    """The gain in log-probability of each pair's chosen answer minus that of the rejected one."""
    gained_R = log_chance_R - reference_R
    return gained_R[0::2] - gained_R[1::2]


def response_log_chances(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], forward: torch.nn.Module | None = None,
) -> torch.Tensor:
    """log p of every row's response, (R,) in fp32. ``forward``: as for response_loss."""
    call: Any = forward or model
    inputs = model_inputs(model, {name: batch[name] for name in OF_TEXT})
    logits_RSV, label_RS = call(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    nll_RS = F.cross_entropy(logits_RSV.float().transpose(1, 2), label_RS, reduction="none", ignore_index=IGNORED)
    return -nll_RS.sum(dim=1)


@torch.no_grad()
def log_chances_of(model: PreTrainedModel, pairs: Pairs, batch_size: int) -> torch.Tensor:
    """log p of every row's response under ``model``, on its device and in its dtype, (R,) on the CPU."""
    was_training = model.training
    model.eval()
    found = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs.collate(pairs.sequences[start:start + batch_size])
        found.append(response_log_chances(model, {name: item.to(model.device) for name, item in batch.items()}).cpu())
    model.train(was_training)
    return torch.cat(found)
