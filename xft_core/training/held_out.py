"""Negative log-likelihood per response token of held-out rows, the measure in addition to pass@1."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.errors import DataError
from xft_core.models.discovery import family_of
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.balance import LayerStatistics, RouterStatistics
from xft_core.moe.prompts import PackedPrompts, asks_prompts, tell_prompts
from xft_core.moe.router import Routing
from xft_core.training.response_loss import model_inputs, response_loss, response_nll

TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class HeldOutLoss:
    """``nll``: nats per response token over ``tokens`` of them; ``router``: statistics by layer, empty for a dense model."""

    nll: float
    tokens: int
    router: list[LayerStatistics]


@dataclass(frozen=True)
class RowLoss:
    """The loss of one row: nats, summed over its response, and the response's number of tokens."""

    nll: float
    tokens: int




def take_routings(model: torch.nn.Module) -> list[Routing]:
    """Take the routers' decisions of the latest forward pass out of the model, by layer. Empty for a dense model."""
    routings = []
    for block in moe_blocks(model):
        if block.routing is not None:
            routings.append(block.routing)
            block.routing = None
    return routings


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: Rows, max_rows: int | None = None) -> HeldOutLoss:
    """Measure ``model``, on its device and in its dtype, on the first ``max_rows`` of ``rows`` (all by default).

    Rows are packed if the model keeps them apart. Apart from rounding, the result does not depend on the packing.
    """
    check_rows_fit(model, [rows])
    was_training = model.training
    model.eval()
    max_length = max(rows.lengths())
    packed = PackedRows(rows, max_length, packing=family_of(model.config).packs)
    if max_rows is not None:
        kept = [[index for index in sequence if index < max_rows] for sequence in packed.sequences]
        packed.sequences = [sequence for sequence in kept if sequence]
    blocks = moe_blocks(model)
    statistics = None
    if blocks:
        upcycle = blocks[0].router.upcycle
        statistics = RouterStatistics(len(blocks), upcycle.num_experts, upcycle.shared_expert)
    total, tokens = 0.0, 0
    batch_size = max(1, TOKENS_PER_BATCH // max_length)
    for start in range(0, len(packed), batch_size):
        on_host = packed.collate(packed.sequences[start:start + batch_size])
        batch = {name: item.to(model.device) for name, item in on_host.items()}
        for block in blocks:
            block.keep_routing = True
        total += float(response_loss(model, batch))
        tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
        if statistics:
            statistics.add(take_routings(model), batch["token_mask"].reshape(-1))
    model.train(was_training)
    return HeldOutLoss(total / tokens, tokens, statistics.layers() if statistics else [])


@torch.no_grad()
def row_losses(model: PreTrainedModel, rows: Rows) -> list[RowLoss]:
    """The loss of every single row, in their order. ``model`` is used on its device and in its dtype."""
    check_rows_fit(model, [rows])
    model.eval()
    lengths = rows.lengths()
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    packed = PackedRows(rows, max(lengths), packing=False)
    losses: dict[int, RowLoss] = {}
    while order:
        number = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        chosen, order = order[:number], order[number:]
        batch = {name: item.to(model.device) for name, item in packed.collate([[index] for index in chosen]).items()}
        if asks_prompts(model):
            tell_prompts(model, PackedPrompts(batch["position_ids"], batch["labels"]))
        logits_BSV = model(**model_inputs(model, batch)).logits
        for place, index in enumerate(chosen):
            labels_1S = batch["labels"][place:place + 1]
            nll = float(response_nll(logits_BSV[place:place + 1], labels_1S))
            losses[index] = RowLoss(nll, int((labels_1S[:, 1:] != IGNORED).sum()))
    return [losses[index] for index in range(len(rows))]


def check_rows_fit(model: PreTrainedModel, splits: list[Rows]) -> None:
    """Raise DataError for rows longer than the model's context, or prepared for another tokenizer than the model's."""
    longest = max(max(rows.lengths()) for rows in splits)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and longest > context:
        raise DataError(
            f"The longest row has {longest} tokens, but the model takes at most {context}. Lower data.max_length to {context} "
            "or less.")
    largest, vocabulary = max(rows.largest_token() for rows in splits), model.get_input_embeddings().num_embeddings
    if largest >= vocabulary:
        raise DataError(
            f"The data contains token {largest}, but the model has {vocabulary} tokens: the data was prepared with another "
            "model's tokenizer. Prepare it with this model.")
