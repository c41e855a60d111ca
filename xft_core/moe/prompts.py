"""Which tokens belong to which prompt, for decisions that the instruction makes once for all tokens of an example.

The caller of the model gives the prompts before a forward pass (``tell_prompts``). In training and in losses, they follow from
the labels and from the positions, which restart with each packed example. In generation, the first pass is that of the prompts.

Shape suffixes: B sequences, S tokens of a sequence, T = B * S tokens, P prompts, D hidden size.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from xft_core.errors import XftError

IGNORED = -100  # label of a token that does not count in the loss, as in xft_core.data.packing


class PromptsUnknown(XftError):
    """A forward pass of hierarchical experts for which no prompts were given."""


class Prompts(ABC):
    """The prompts of a batch."""

    @abstractmethod
    def means(self, x_TD: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """``(mean_PD, prompt_T)``: the mean of ``x`` over the tokens of every prompt, fp32 at least, and the prompt that
        each token belongs to. ``layer``: the calling layer, by which means are kept from one forward pass to the next."""


class PackedPrompts(Prompts):
    """The prompts of a batch from PackedRows: all tokens before an example's first labelled one (all tokens, if none is
    labelled). A padding token is an example by itself."""

    def __init__(self, position_ids_BS: torch.Tensor, labels_BS: torch.Tensor) -> None:
        begins_BS = position_ids_BS == 0
        begins_BS[:, 0] = True
        self.example_T = begins_BS.reshape(-1).long().cumsum(0) - 1
        labelled_T = (labels_BS.reshape(-1) != IGNORED).long()
        before_T = labelled_T.cumsum(0) - labelled_T  # labelled tokens before each, of the whole batch
        at_begin_P = before_T[begins_BS.reshape(-1)]
        self.in_prompt_T = (labelled_T == 0) & (before_T == at_begin_P[self.example_T])

    def means(self, x_TD: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """See Prompts. An example without a prompt has a mean of zero."""
        num_prompts = int(self.example_T[-1]) + 1
        wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32)) * self.in_prompt_T[:, None]
        sum_PD = wide_TD.new_zeros(num_prompts, x_TD.shape[1]).index_add(0, self.example_T, wide_TD)
        count_P = torch.bincount(self.example_T, weights=self.in_prompt_T, minlength=num_prompts)
        return sum_PD / count_P.clamp(min=1)[:, None].to(sum_PD.dtype), self.example_T


class GeneratedPrompts(Prompts):
    """Prompts that are being completed: each layer keeps the means of its first forward pass. ``mask_BS``: 0 for padding."""

    def __init__(self, mask_BS: torch.Tensor) -> None:
        self.mask_BS = mask_BS
        self._means: dict[nn.Module, torch.Tensor] = {}

    def means(self, x_TD: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """See Prompts."""
        number, length = self.mask_BS.shape
        if layer not in self._means:
            assert len(x_TD) == number * length, "the first forward pass is not that of the prompts"
            mask_BS1 = self.mask_BS[..., None].to(torch.promote_types(x_TD.dtype, torch.float32))
            sum_BD = (x_TD.view(number, length, -1) * mask_BS1).sum(1)
            self._means[layer] = sum_BD / mask_BS1.sum(1).clamp(min=1)
        per_row = len(x_TD) // number
        return self._means[layer], torch.arange(number, device=x_TD.device).repeat_interleave(per_row)

    def keep(self, rows: list[int]) -> None:
        """Continue with only some of the rows."""
        self.mask_BS = self.mask_BS[rows]
        self._means = {layer: mean_BD[rows] for layer, mean_BD in self._means.items()}


class AsksPrompts(nn.Module):
    """A module that needs the prompts of each batch. Not a context manager: checkpointing repeats a forward pass later."""

    prompts: Prompts | None = None

    def prompt_means(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Prompts.means. Raises PromptsUnknown if no prompts were given, or those of other tokens."""
        if self.prompts is None:
            raise PromptsUnknown(
                "Hierarchical experts are chosen by the prompt, but the model was not told the prompt. Before a forward pass, "
                "call xft_core.moe.prompts.tell_prompts(model, ...).")
        return self.prompts.means(x_TD, self)


def tell_prompts(model: nn.Module, prompts: Prompts) -> None:
    """Set the prompts from the next forward pass on. Has no effect on models that do not need them."""
    for module in model.modules():
        if isinstance(module, AsksPrompts):
            module.prompts = prompts


def asks_prompts(model: nn.Module) -> bool:
    """Whether a model needs prompts."""
    return any(isinstance(module, AsksPrompts) for module in model.modules())
