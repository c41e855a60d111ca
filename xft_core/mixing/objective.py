"""The objective that learned mixing minimises: the loss of the merged model, or its divergence from the Mixture-of-Experts.

    nll         -log q(token)                                   summed over response tokens
    distill     KL(p || q) = sum_v p_v (log p_v - log q_v)      the same; p: the Mixture-of-Experts, q: the merged model

The teacher's logits are recomputed for every batch, not cached. The divergence therefore covers the whole vocabulary, resumed
runs and several processes share no data, and one pass over the rows, the default, takes the same work. The cost is one forward
pass of the Mixture-of-Experts for each batch, and its weights in memory.

Shape suffixes: B sequences, S tokens, X response tokens, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from xft_core.data.packing import IGNORED
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.models.packed_attention import attend_by_example
from xft_core.training.response_loss import BLOCK_LOGITS, LEAST_BLOCK, model_inputs, response_loss

Objective = Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]  # model and batch to a sum over response tokens

nll: Objective = response_loss


class Distillation:
    """The objective distill, with the Mixture-of-Experts in ``directory`` as its teacher."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.teacher = load_model(directory, dtype).to(device).requires_grad_(False)

    def __call__(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum of KL(teacher || model) over the response tokens of ``batch``, in fp32, or in fp64 for fp64 models."""
        with torch.no_grad():
            teacher_XD, teacher_logits = _before_head(self.teacher, batch)
        student_XD, student_logits = _before_head(model, batch)
        size = max(LEAST_BLOCK, BLOCK_LOGITS // model.config.get_text_config().vocab_size)
        total = torch.zeros((), dtype=torch.promote_types(student_XD.dtype, torch.float32), device=student_XD.device)
        for start in range(0, len(student_XD), size):
            block = slice(start, start + size)
            # A block's logits are recomputed for its gradient, so that only one block's are in memory at a time.
            total = total + checkpoint(
                lambda x, y: divergence(teacher_logits(x), student_logits(y)), teacher_XD[block], student_XD[block],
                use_reentrant=False)
        return total


def divergence(teacher_XV: torch.Tensor, student_XV: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of KL(softmax(teacher) || softmax(student)), from logits."""
    wide = torch.promote_types(student_XV.dtype, torch.float32)
    log_p_XV = F.log_softmax(teacher_XV, dim=-1, dtype=wide)
    log_q_XV = F.log_softmax(student_XV, dim=-1, dtype=wide)
    return (log_p_XV.exp() * (log_p_XV - log_q_XV)).sum()


def _before_head(
    model: PreTrainedModel, batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The head's input where response tokens are to be predicted, X,D, and a function that computes logits from it. If the
    family changes its logits after the head, the logits themselves, X,V, take the place of the input."""
    family = family_of(model.config)
    if family.attends_by_example:
        attend_by_example(model)
    inputs = model_inputs(model, batch)
    chosen_BS = batch["labels"][:, 1:] != IGNORED
    if not family.plain_head:
        return model(**inputs).logits[:, :-1][chosen_BS], lambda logits_XV: logits_XV
    head: Any = model.get_output_embeddings()
    with _nothing_for_head(head):
        hidden_BSD = model(**inputs).logits
    return hidden_BSD[:, :-1][chosen_BS], lambda hidden_XD: F.linear(hidden_XD, head.weight, head.bias)


@contextmanager
def _nothing_for_head(head: Any) -> Iterator[None]:
    """While active, the head returns its input."""
    head.forward = lambda hidden_BSD: hidden_BSD
    try:
        yield
    finally:
        del head.forward
