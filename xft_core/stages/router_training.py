"""Router weights trained on labelled rows before the Mixture-of-Experts trains (UpIT, arXiv 2410.01610).

Everything but W_1 of every layer is frozen. W_2 = 1, so an expert's logit depends on its own weight row alone:

    minimize over W_1:  1/2 LM + 1/2 BCE,      BCE = sum_t a_t mean_{l,i} [-y log sigma(r) - (1 - y) log(1 - sigma(r))]

LM is the mean response loss of the Mixture-of-Experts with these routers. r = r_{l,i}(x_t) is the logit of expert i in layer l;
y is 1 if i is the label of token t's row, else 0. a_t is as in router_start.py, scaled to sum to one: experts count equally,
however many rows they have. Tokens of prompts and responses count, padding does not.

The training starts from the ridge regression on the same rows and labels. UpIT starts at random. But a few passes over a
hundredth of the rows are short, and the regression saves the search: it costs one forward pass of the dense model, it puts W_1
on the scale of the hidden states, and no seed favours an expert. Adam treats all weights alike, so permuting the experts
permutes the rows of W_1, up to rounding and the order of the rows (with branches, the rows come in the order of the experts).

The two halves and the four passes are UpIT's, as a summary of the paper gives them. We know of no optimizer, batch or rate that
UpIT states for its routers, so these are ours: Adam with its usual constants, eight rows per step, and a rate of 0.5 / D that
falls linearly to zero. Adam moves a weight by about the rate, and W_1 x by about rate * D, hence 1 / D (muP, arXiv 2203.03466).
At the hidden size of UpIT's smaller model, 2560, this is 2e-4, at which UpIT tunes LoRA experts.

There is no dropout and no routing noise, and the seed alone gives the order of the rows: the same inputs give the same weights,
so a start after a kill simply repeats the work. Shape suffixes: T tokens, D hidden size, R routed experts, L layers.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from xft_core.data.order import SeededOrder
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.router import Router
from xft_core.planning.work import ROUTER_PASSES
from xft_core.stages.labelled_rows import LabelledRows
from xft_core.training.held_out import take_routings
from xft_core.training.response_loss import response_loss

logger = logging.getLogger(__name__)

ROWS_PER_STEP = 8
RATE_TIMES_SIZE = 0.5  # the learning rate at the start, times D


@dataclass(frozen=True)
class TrainedRouters:
    """``weights``: W_1 of every layer's router (R,D, fp32, on the CPU). ``loss_first``, ``loss_last``: the loss over all rows
    before and after the training, in nats. ``accuracy``: share of the tokens whose label has the largest logit, mean over
    layers, after the training."""

    weights: list[torch.Tensor]
    loss_first: float
    loss_last: float
    accuracy: float


def train_routers(model: PreTrainedModel, labelled: LabelledRows, seed: int) -> TrainedRouters:
    """Train W_1 of the routers of ``model`` in place, in fp32 whatever the model's dtype.

    Args:
        model: Mixture-of-Experts in evaluation mode, whose routers have their start (W_2 = 1, but any start trains).
        labelled: the rows and their experts.
        seed: of the order of the rows.
    """
    rows = _Rows(model, labelled)
    model.requires_grad_(False)
    weights = [_in_fp32(block.router) for block in moe_blocks(model)]
    first, _ = rows.measured()
    optimizer = torch.optim.Adam(weights, lr=RATE_TIMES_SIZE / weights[0].shape[1])
    steps = ROUTER_PASSES * math.ceil(len(rows) / ROWS_PER_STEP)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    order = SeededOrder(len(rows), seed)
    for order.epoch in range(ROUTER_PASSES):  # a new order in every pass
        numbers = list(order)
        for start in range(0, len(numbers), ROWS_PER_STEP):
            for number in numbers[start:start + ROWS_PER_STEP]:  # one at a time: the memory is that of one row
                rows.loss(number)[0].backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    last, accuracy = rows.measured()
    logger.info("upcycle: the router's loss was %.4f, is %.4f; its first choice is the label for %.1f%% of the tokens",
                first, last, 100 * accuracy)
    return TrainedRouters([weight_RD.detach().cpu() for weight_RD in weights], first, last, accuracy)


class _Rows:
    """The rows' shares of the loss. Added up over all rows, the shares are the loss."""

    def __init__(self, model: PreTrainedModel, labelled: LabelledRows) -> None:
        self.model, self.blocks = model, moe_blocks(model)
        packed = [PackedRows(piece, max(piece.lengths()), packing=False) for piece in labelled.pieces]
        self.rows = [(piece, index, label) for piece, of_piece in zip(packed, labelled.labels, strict=True)
                     for index, label in enumerate(of_piece)]
        self.responses = max(1, sum(int((piece.rows.labels(index, IGNORED)[1:] != IGNORED).sum())
                                    for piece, index, _ in self.rows))
        tokens = labelled.tokens_of_experts
        self.tokens = sum(tokens)
        with_rows = sum(count > 0 for count in tokens)
        self.weights: Sequence[float] = [1 / (with_rows * max(1, count)) for count in tokens]  # a_t, by label

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, number: int) -> tuple[torch.Tensor, int]:
        """A row's share of the loss, and the number of its tokens in all layers whose label has the largest logit."""
        piece, index, label = self.rows[number]
        batch = {name: item.to(self.model.device) for name, item in piece.collate([[index]]).items()}
        for block in self.blocks:
            block.keep_routing = True
        nll = response_loss(self.model, batch)
        mask_T = batch["token_mask"].reshape(-1)
        logits_LTR = torch.stack([routing.logits_TR[mask_T] for routing in take_routings(self.model)])
        y_LTR = torch.zeros_like(logits_LTR)
        y_LTR[..., label] = 1
        bce = F.binary_cross_entropy_with_logits(logits_LTR, y_LTR, reduction="none").mean((0, 2)).sum()
        loss = 0.5 * nll / self.responses + 0.5 * self.weights[label] * bce
        return loss, int((logits_LTR.argmax(-1) == label).sum())

    @torch.no_grad()
    def measured(self) -> tuple[float, float]:
        """The loss over all rows, and the accuracy."""
        found = [self.loss(number) for number in range(len(self))]
        accuracy = sum(hits for _, hits in found) / (self.tokens * len(self.blocks))
        return sum(float(loss) for loss, _ in found), accuracy


def _in_fp32(router: Router) -> nn.Parameter:
    """Let a router of any dtype compute in fp32, where small steps are not rounded away. Returns its W_1, to be trained even if
    the router is frozen afterwards."""
    for parameter in router.parameters():
        parameter.data = parameter.data.float()
    router.register_forward_pre_hook(lambda _, given: given[0].float())
    router.hidden.weight.requires_grad_()
    return router.hidden.weight
