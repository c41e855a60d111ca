"""Initial router weights that already match rows to experts, if the experts differ (UpIT, arXiv 2410.01610; DUME, 2603.29765).

In every layer, ridge regression from hidden states to the labels of labelled_rows.py gives the router's initial weights:

    W_1 = argmin_W sum_t a_t |W x_t - (e_i(t) - 1/R)|^2 + rho |W|^2,      W_2 = 1

where x_t is the input of the layer's FFN in the model that supplies everything but the routed experts, i(t) is the label of
token t's row, a_t is one over the number of tokens with this label (so experts count equally, however many rows they have), and
rho is a hundredth of the mean eigenvalue of sum_t a_t x_t x_t^T. The router's tanh is close to the identity where W_1 x is
below 1, so the logits begin as the regression's scores. An expert that is not the label of any row has a row of zeros.

Nothing here is drawn at random: the same inputs give the same weights, so a start after a kill simply repeats the work.
Shape suffixes: T tokens, D hidden size, R routed experts, B rows, S tokens.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from xft_core.data.packing import PackedRows
from xft_core.data.rows import Rows
from xft_core.models.config import decoder_layers
from xft_core.models.discovery import family_of
from xft_core.planning.memory import LAYERS_BYTES
from xft_core.stages.labelled_rows import LabelledRows
from xft_core.training.held_out import TOKENS_PER_BATCH
from xft_core.training.response_loss import response_loss

RIDGE = 1e-2  # rho as a fraction of the mean eigenvalue


@torch.no_grad()
def ridge_weights(model: PreTrainedModel, labelled: LabelledRows) -> list[torch.Tensor]:
    """Return W_1 of every layer (fp32, R,D, on the CPU), in order. ``model``: the dense model whose hidden states the routers
    will see."""
    family = family_of(model.config)
    layers = [layer.get_submodule(family.block) for layer in decoder_layers(model, family)]
    tokens = labelled.tokens_of_experts
    hidden_size = int(model.config.get_text_config().hidden_size)
    at_once = max(1, int(LAYERS_BYTES // (8 * hidden_size**2)))
    found: list[torch.Tensor] = []
    for first in range(0, len(layers), at_once):
        sums = [_Sums(tokens, module) for module in layers[first:first + at_once]]
        for piece, of_piece in zip(labelled.pieces, labelled.labels, strict=True):
            _add(model, piece, of_piece, sums)
        found += [item.solved() for item in sums]
    return found


def _add(model: PreTrainedModel, rows: Rows, labels: Sequence[int], sums: list["_Sums"]) -> None:
    lengths = rows.lengths()
    order = sorted(range(len(rows)), key=lambda index: (-lengths[index], index))
    packed = PackedRows(rows, max(lengths), packing=False)
    while order:
        number = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        chosen, order = order[:number], order[number:]
        batch = {name: item.to(model.device) for name, item in packed.collate([[index] for index in chosen]).items()}
        mask_BS = batch["token_mask"]
        label_BS = torch.tensor([labels[index] for index in chosen], device=model.device)[:, None].expand_as(mask_BS)
        for item in sums:
            item.label_T, item.mask_T = label_BS[mask_BS], mask_BS.reshape(-1)
        hooks = [item.module.register_forward_pre_hook(item.take, with_kwargs=True) for item in sums]
        try:
            response_loss(model, batch)
        finally:
            for hook in hooks:
                hook.remove()


class _Sums:
    """The sums of one layer, in fp64: sum a x x^T (D,D) and sum a x y^T (D,R)."""

    def __init__(self, tokens: list[int], module: nn.Module) -> None:
        self.module, self._tokens = module, tokens
        self._gram_DD: torch.Tensor | None = None
        self._target_DR: torch.Tensor | None = None
        self.label_T = self.mask_T = torch.empty(0)

    def take(self, module: nn.Module, arguments: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        """Add the FFN's input to the sums."""
        given = arguments[0] if arguments else next(iter(named.values()))
        x_TD = given.reshape(-1, given.shape[-1])[self.mask_T].double()
        label_T, number = self.label_T, len(self._tokens)
        weight_T = 1 / torch.tensor(self._tokens, dtype=torch.float64, device=x_TD.device).clamp(min=1)[label_T]
        is_label_R = torch.tensor([count > 0 for count in self._tokens], device=x_TD.device)
        y_TR = torch.nn.functional.one_hot(label_T, number).double() - 1 / number
        weighted_DT = (x_TD * weight_T[:, None]).t()
        gram_DD, target_DR = weighted_DT @ x_TD, weighted_DT @ (y_TR * is_label_R)
        self._gram_DD = gram_DD if self._gram_DD is None else self._gram_DD + gram_DD
        self._target_DR = target_DR if self._target_DR is None else self._target_DR + target_DR

    def solved(self) -> torch.Tensor:
        """Solve for W_1."""
        assert self._gram_DD is not None and self._target_DR is not None, "the FFN was not called"
        gram_DD, size = self._gram_DD, len(self._gram_DD)
        ridge = RIDGE * float(gram_DD.diagonal().mean())
        identity_DD = torch.eye(size, dtype=gram_DD.dtype, device=gram_DD.device)
        weight_DR = torch.linalg.solve(gram_DD + ridge * identity_DD, self._target_DR)
        return weight_DR.t().float().cpu().contiguous()
