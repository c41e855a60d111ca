"""The loss over response tokens without ever holding the logits of a whole batch.

Only tokens that are to be predicted need logits, one block at a time: the head computes the loss itself, and the gradient while
the block's logits exist (at vocabularies of 150 k, they are the largest tensor of a step). The result is exact, at the
arithmetic of the full computation. Shape suffixes: B sequences, S tokens, X tokens of responses, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from xft_core.data.packing import IGNORED
from xft_core.models.discovery import family_of
from xft_core.models.packed_attention import attend_by_example
from xft_core.moe.prompts import PackedPrompts, asks_prompts, tell_prompts

BLOCK_LOGITS = 2**25  # logits held at once: 128 MiB in fp32
OF_TEXT = ("input_ids", "position_ids", "labels", "token_mask")  # of a batch; all other tensors are of pictures
LEAST_BLOCK = 256  # tokens; smaller blocks would leave the matrix product waiting for memory


def response_nll(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """Sum of -log p over the labelled tokens, in fp32 (fp64 for fp64 logits); labels are shifted here."""
    chosen_BS = labels_BS[:, 1:] != IGNORED
    return F.cross_entropy(_wide(logits_BSV[:, :-1][chosen_BS]), labels_BS[:, 1:][chosen_BS], reduction="sum")


def response_loss(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], forward: torch.nn.Module | None = None,
) -> torch.Tensor:
    """``response_nll`` of the model's logits for ``batch`` (input_ids, position_ids and labels, all B,S).

    Args:
        model: the model itself, whose head is used.
        batch: from PackedRows.collate, on the model's device.
        forward: called in place of the model: the same model, wrapped by a trainer.
    """
    family = family_of(model.config)
    assert family.packs or not _is_packed(batch["position_ids"]), "examples of one sequence would see each other"
    if family.attends_by_example:
        attend_by_example(model)
    if asks_prompts(model):
        tell_prompts(model, PackedPrompts(batch["position_ids"], batch["labels"]))
    inputs = model_inputs(model, batch)
    call = forward or model
    if not family.plain_head:
        return response_nll(call(**inputs).logits, batch["labels"])
    with _loss_in_place_of_logits(model.get_output_embeddings(), batch["labels"]):
        loss: torch.Tensor = call(**inputs).logits
    return loss


def model_inputs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A model's arguments for a batch of PackedRows.collate. A model that reads pictures numbers positions itself, because they
    depend on the pictures; its sequences are single rows, padded at the end."""
    if not family_of(model.config).reads_pictures:
        return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    pictures = {
        name: item.to(model.dtype) if item.is_floating_point() else item for name, item in batch.items() if name not in OF_TEXT}
    return {"input_ids": batch["input_ids"], "attention_mask": batch["token_mask"].long(), "use_cache": False, **pictures}


def _is_packed(position_ids_BS: torch.Tensor) -> bool:
    """Whether a sequence has a second example (padding has position 0 at each token)."""
    return bool((position_ids_BS[:, 2:] == 1).any())


@contextmanager
def _loss_in_place_of_logits(head: Any, labels_BS: torch.Tensor) -> Iterator[None]:
    """While active, the head returns the loss, within the model's own forward pass, so that autocast and sharding apply."""
    def forward(hidden_BSD: torch.Tensor) -> torch.Tensor:
        chosen_BS = labels_BS[:, 1:] != IGNORED
        hidden_XD, weight_VD, bias = hidden_BSD[:, :-1][chosen_BS], head.weight, head.bias
        device = hidden_XD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_XD, weight_VD, bias = hidden_XD.to(dtype), weight_VD.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            loss: torch.Tensor = _HeadLoss.apply(hidden_XD, weight_VD, bias, labels_BS[:, 1:][chosen_BS])
        return loss

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


class _HeadLoss(torch.autograd.Function):
    """Sum of -log softmax(x W^T + b)[label]. Gradients are computed in the forward pass, block by block."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_XD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, label_X: torch.Tensor,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden_XD.dtype, torch.float32)
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        hidden_grad_XD = torch.empty_like(hidden_XD) if wants_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        bias_grad_V = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        loss = torch.zeros((), dtype=wide, device=hidden_XD.device)
        size = max(LEAST_BLOCK, BLOCK_LOGITS // len(weight_VD))
        for start in range(0, len(hidden_XD), size):
            x_XD, block_X = hidden_XD[start:start + size], label_X[start:start + size, None]
            log_chance_XV = F.log_softmax(F.linear(x_XD, weight_VD, bias_V), dim=-1, dtype=wide)
            loss -= log_chance_XV.gather(1, block_X).sum()
            if not any((wants_hidden, wants_weight, wants_bias)):
                continue
            grad_XV = log_chance_XV.exp_()
            grad_XV.scatter_add_(1, block_X, grad_XV.new_full(block_X.shape, -1.0))
            if bias_grad_V is not None:
                bias_grad_V += grad_XV.sum(0)
            grad_XV = grad_XV.to(hidden_XD.dtype)
            if hidden_grad_XD is not None:
                torch.mm(grad_XV, weight_VD, out=hidden_grad_XD[start:start + size])
            if weight_grad_VD is not None:
                if wide == hidden_XD.dtype:
                    weight_grad_VD.addmm_(grad_XV.T, x_XD)
                else:
                    weight_grad_VD += grad_XV.T @ x_XD
        if weight_grad_VD is not None:
            weight_grad_VD = weight_grad_VD.to(weight_VD.dtype)
        ctx.gradients = hidden_grad_XD, weight_grad_VD, None if bias_grad_V is None else bias_grad_V.to(weight_VD.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        gradients = ctx.gradients
        ctx.gradients = None
        return (*(None if gradient is None else gradient.mul_(scale) for gradient in gradients), None)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
