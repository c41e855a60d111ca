"""The shared expert's routing weight, mean and spread, by layer and class of token.

Shape suffixes: B rows, S tokens of a row, T = B * S tokens, K experts per token, C classes of tokens.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.data.token_classes import CLASSES, token_classes
from xft_core.models.upcycled import moe_blocks
from xft_core.store.results.sft import TokenClassWeight
from xft_core.training.held_out import TOKENS_PER_BATCH, take_routings
from xft_core.training.response_loss import response_loss

MOST_ROWS = 256  # enough for thousands of tokens even of a rare class


@torch.no_grad()
def shared_weight_by_class(
    model: PreTrainedModel, rows: Rows, tokenizer: PreTrainedTokenizerBase,
) -> list[TokenClassWeight]:
    """The weight for every class that occurs, over the responses of the first MOST_ROWS rows. ``model``: a Mixture-of-Experts
    with a shared expert, used on its device and in its dtype."""
    was_training = model.training
    model.eval()
    blocks, rows = moe_blocks(model), rows.first(MOST_ROWS)
    lengths = rows.lengths()
    packed = PackedRows(rows, max(lengths), packing=False)
    count_C = torch.zeros(len(CLASSES), dtype=torch.float64)
    sum_LC, squares_LC = torch.zeros(2, len(blocks), len(CLASSES), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda index: (-lengths[index], index))
    while order:
        number = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        chosen, order = order[:number], order[number:]
        on_host = packed.collate([[index] for index in chosen])
        class_T = torch.full_like(on_host["labels"], -1)
        for place, index in enumerate(chosen):
            class_T[place, :lengths[index]] = torch.tensor(_classes(rows, index, tokenizer))
        class_T = class_T.reshape(-1)
        of_T = class_T >= 0
        for block in blocks:
            block.keep_routing = True
        response_loss(model, {name: item.to(model.device) for name, item in on_host.items()})
        count_C += torch.bincount(class_T[of_T], minlength=len(CLASSES))
        for layer, routing in enumerate(take_routings(model)):
            weight_T = routing.weight_TK[:, -1].double().cpu()[of_T]
            sum_LC[layer].index_add_(0, class_T[of_T], weight_T)
            squares_LC[layer].index_add_(0, class_T[of_T], weight_T.square())
    model.train(was_training)
    mean_LC = sum_LC / count_C
    spread_LC = (squares_LC / count_C - mean_LC.square()).clamp(min=0).sqrt()
    return [
        TokenClassWeight(name=name, tokens=int(count_C[place]), mean=mean_LC[:, place].tolist(),
                         spread=spread_LC[:, place].tolist())
        for place, name in enumerate(CLASSES) if count_C[place]]


def _classes(rows: Rows, index: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """For every token of a row, the index of its class in CLASSES; -1 for given tokens and for those without a class. If a row
    has several answers, each is a separate text."""
    tokens, learned = rows[index][0].tolist(), (rows.labels(index, IGNORED) != IGNORED).tolist()
    found, start = [-1] * len(tokens), 0
    while start < len(tokens):
        if not learned[start]:
            start += 1
            continue
        end = next((place for place in range(start, len(tokens)) if not learned[place]), len(tokens))
        classes = token_classes(tokenizer, tokens[start:end])
        found[start:end] = [-1 if name is None else CLASSES.index(name) for name in classes]
        start = end
    return found
