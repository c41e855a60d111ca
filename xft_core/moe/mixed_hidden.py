"""The mixed hidden layer of low-rank experts: forward and backward passes, a few tokens at a time.

    h_k = act(G + low_g B_g[k]) * (U + low_u B_u[k])              for every slot k of a token
    H   = sum_k w_k h_k,        L = sum_k w_k h_k A_d[k]^T

where B[k] and A[k] are the parts of B and A that belong to the node of slot k. Only G, U and the low-rank inputs are kept for
the backward pass, which recomputes h_k while its tokens are in the cache, so a token's slots take no memory.

Shape suffixes: T tokens, n tokens processed at once, S their slots, F FFN size, K slots of a token, E nodes, C low-rank columns
of the layers into the FFN, J of the layer out of it, P parts. A part is a run of consecutive columns; a node is the set of
parts that one slot adds to the shared weights.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

BLOCK_ELEMENTS = 2**19  # of the slots of some tokens on a CPU: 2 MiB in fp32
ACCELERATOR_BLOCK_ELEMENTS = 2**27  # the same elsewhere

Activation = Callable[[torch.Tensor], torch.Tensor]


class Into(NamedTuple):
    """A layer into the FFN: ``shared_TF`` W_s x, ``low_TC`` A x of all columns, ``out_CF`` B of all columns."""

    shared_TF: torch.Tensor
    low_TC: torch.Tensor
    out_CF: torch.Tensor


class Nodes(NamedTuple):
    """Numbers of each node's ``parts``, and the columns of each part in the layers ``into`` and ``out`` of the FFN."""

    parts: tuple[tuple[int, ...], ...]
    into: tuple[slice, ...]
    out: tuple[slice, ...]


def mixed_hidden(
    activation: Activation, nodes: Nodes, into: list[Into], down_JF: torch.Tensor, index_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(H, L)`` of the equations above, T,F and T,J.

    Args:
        activation: elementwise.
        nodes: the nodes that slots refer to.
        into: gate and up, or up alone without a gate.
        down_JF: A of the down projection.
        index_TK: the node of each slot, 0 to E - 1.
        weight_TK: the weight of each slot; any float dtype.
    """
    shared, low, out = zip(*into, strict=True)
    return _MixedHidden.apply(activation, nodes, index_TK, weight_TK, down_JF, *shared, *low, *out)  # type: ignore[no-any-return]


class _MixedHidden(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, activation: Activation, nodes: Nodes, *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.activation, ctx.nodes = activation, nodes
        ctx.save_for_backward(*tensors)
        work = _Work(activation, nodes, tensors)
        like_TF = work.shared[0]
        mixed_TF, low_TJ = torch.empty_like(like_TF), like_TF.new_empty(len(like_TF), len(work.down_JF))
        with torch.autocast(mixed_TF.device.type, enabled=False):
            for rows in work.blocks():
                slots = work.slots(rows)
                hidden_SF = work.activation(work.layer(0, slots, rows))
                if len(work.shared) == 2:
                    hidden_SF = work.layer(1, slots, rows).mul_(hidden_SF)
                hidden_SF.mul_(work.weight_TK[rows].reshape(-1)[slots.order_S, None])
                mixed_TF[rows] = slots.of_tokens(hidden_SF)
                low_TJ[rows] = slots.of_tokens(slots.out.reduced(hidden_SF, work.down_JF))
        return mixed_TF, low_TJ

    @staticmethod
    def backward(ctx: Any, d_mixed_TF: torch.Tensor, d_low_TJ: torch.Tensor) -> Any:  # type: ignore[override]
        saved = ctx.saved_tensors  # read once: gradient checkpointing does not give them a second time
        work = _Work(ctx.activation, ctx.nodes, saved)
        d_weight_TK = torch.empty_like(work.weight_TK)
        d_shared, d_low = ([torch.empty_like(item) for item in kind] for kind in (work.shared, work.low))
        wide = torch.promote_types(d_mixed_TF.dtype, torch.float32)
        d_down_JF, *d_out = (torch.zeros_like(item, dtype=wide) for item in (work.down_JF, *work.out))
        d_mixed_TF, d_low_TJ = d_mixed_TF.to(work.dtype), d_low_TJ.to(work.dtype)
        with torch.autocast(d_mixed_TF.device.type, enabled=False):
            for rows in work.blocks():
                slots = work.slots(rows)
                weight_S1 = work.weight_TK[rows].reshape(-1)[slots.order_S, None].to(d_mixed_TF.dtype)
                before_SF = work.layer(0, slots, rows).detach().requires_grad_()
                with torch.enable_grad():
                    active_SF = work.activation(before_SF)
                up_SF = work.layer(1, slots, rows) if len(work.shared) == 2 else None
                hidden_SF = active_SF.detach()
                if up_SF is not None:
                    hidden_SF = torch.mul(hidden_SF, up_SF, out=work.room("hidden", len(up_SF)))
                d_low_SJ = d_low_TJ[rows].index_select(0, slots.token_S)
                d_hidden_SF = slots.out.expanded(d_low_SJ, work.down_JF, work.of_slots("d_hidden", d_mixed_TF[rows], slots))
                product_SF = torch.mul(hidden_SF, d_hidden_SF, out=work.room("product", len(hidden_SF)))
                d_weight_TK[rows] = slots.as_given(product_SF.sum(-1)).to(d_weight_TK.dtype)
                slots.out.add_outer(d_down_JF, d_low_SJ * weight_S1, hidden_SF)
                d_hidden_SF.mul_(weight_S1)
                d_active_SF = d_hidden_SF if up_SF is None else up_SF.mul_(d_hidden_SF)
                d_layers = [*torch.autograd.grad(active_SF, before_SF, d_active_SF)]
                if up_SF is not None:
                    d_layers.append(d_hidden_SF.mul_(active_SF.detach()))
                for number, d_SF in enumerate(d_layers):
                    d_shared[number][rows] = slots.of_tokens(d_SF)
                    d_low[number][rows] = slots.of_tokens(slots.into.reduced(d_SF, work.out[number]))
                    slots.into.add_outer(d_out[number], work.low_of_slots(number, slots, rows), d_SF)
        gradients = [d_down_JF, *d_shared, *d_low, *d_out]
        return None, None, None, d_weight_TK, *(item.to(like.dtype) for item, like in zip(gradients, saved[2:], strict=True))


class _Work:
    """The common parts of forward and backward passes. On a CPU, 16-bit tensors are processed in fp32: elementwise operations
    are faster, and 16-bit products would be compiled for every number of rows."""

    def __init__(self, activation: Activation, nodes: Nodes, tensors: tuple[torch.Tensor, ...]) -> None:
        self.activation, self.nodes = activation, nodes
        self.index_TK, self.weight_TK, self.down_JF, *layers = tensors
        number = len(layers) // 3
        self._rooms: dict[str, torch.Tensor] = {}
        self.shared, self.low, out = (layers[start:start + number] for start in range(0, 3 * number, number))
        self.dtype = self.shared[0].dtype
        if self.shared[0].device.type == "cpu":
            self.dtype = torch.promote_types(self.dtype, torch.float32)
        self.out, self.down_JF = [item.to(self.dtype) for item in out], self.down_JF.to(self.dtype)

    def blocks(self) -> Iterator[slice]:
        """Consecutive tokens whose slots fit the cache."""
        num_tokens, ffn_size = self.shared[0].shape
        elements = BLOCK_ELEMENTS if self.shared[0].device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
        size = max(1, elements // (self.index_TK.shape[1] * ffn_size))
        return (slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))

    def slots(self, rows: slice) -> "_Slots":
        """The slots of these tokens."""
        return _Slots(self.index_TK[rows], self.nodes)

    def layer(self, number: int, slots: "_Slots", rows: slice) -> torch.Tensor:
        """G or U of every slot plus its node's change, S,F."""
        onto_SF = self.of_slots(f"layer {number}", self.shared[number][rows], slots)
        return slots.into.expanded(self.low_of_slots(number, slots, rows), self.out[number], onto_SF)

    def low_of_slots(self, number: int, slots: "_Slots", rows: slice) -> torch.Tensor:
        """The low-rank input of every slot, S,C."""
        return self.low[number][rows].to(self.dtype).index_select(0, slots.token_S)

    def of_slots(self, name: str, x_nF: torch.Tensor, slots: "_Slots") -> torch.Tensor:
        """Values of tokens, repeated for each of their slots, S,F; overwritten by the next call with the same name."""
        return torch.index_select(x_nF.to(self.dtype), 0, slots.token_S, out=self.room(name, len(slots.token_S)))

    def room(self, name: str, number: int) -> torch.Tensor:
        """Memory for ``number`` slots, S,F, reused for every block: allocating it anew would fault in page by page."""
        if name not in self._rooms:
            self._rooms[name] = self.shared[0].new_empty(number, self.shared[0].shape[1], dtype=self.dtype)
        return self._rooms[name][:number]


class _Slots:
    """The slots of some tokens, grouped by node, so that no product is computed that a mask would discard."""

    def __init__(self, index_nK: torch.Tensor, nodes: Nodes) -> None:
        self.shape = index_nK.shape
        self.order_S = torch.sort(index_nK.reshape(-1), stable=True).indices
        self.token_S = self.order_S // self.shape[1]
        self.place_nK = torch.argsort(self.order_S).view(self.shape)
        counts = torch.bincount(index_nK.reshape(-1), minlength=len(nodes.parts)).tolist()
        places = [
            (slice(end - count, end), part)
            for end, count, parts in zip(accumulate(counts), counts, nodes.parts, strict=True) if count for part in parts]
        self.into = _Products([(rows, nodes.into[part]) for rows, part in places])
        self.out = _Products([(rows, nodes.out[part]) for rows, part in places])

    def of_tokens(self, x_SF: torch.Tensor) -> torch.Tensor:
        """The sum over a token's slots, n,F; 16-bit sums are rounded once."""
        return F.embedding_bag(self.place_nK, x_SF, mode="sum")

    def as_given(self, x_S: torch.Tensor) -> torch.Tensor:
        """Values of the slots in the order of the tokens, n,K."""
        return x_S[self.place_nK]


class _Products:
    """Products of slots with their columns. ``places``: pairs of slots and columns."""

    def __init__(self, places: list[tuple[slice, slice]]) -> None:
        self.places = places

    def expanded(self, low_SC: torch.Tensor, out_CF: torch.Tensor, onto_SF: torch.Tensor) -> torch.Tensor:
        """``onto`` + low B, in place."""
        for rows, columns in self.places:
            onto_SF[rows].addmm_(low_SC[rows, columns], out_CF[columns])
        return onto_SF

    def reduced(self, x_SF: torch.Tensor, out_CF: torch.Tensor) -> torch.Tensor:
        """x B^T, S,C, zero in the columns that a slot does not have."""
        low_CS = x_SF.new_zeros(len(out_CF), len(x_SF))
        for rows, columns in self.places:
            torch.mm(out_CF[columns], x_SF[rows].t(), out=low_CS[columns, rows])
        return low_CS.t()

    def add_outer(self, onto_CF: torch.Tensor, low_SC: torch.Tensor, x_SF: torch.Tensor) -> None:
        """``onto`` += low^T x."""
        for rows, columns in self.places:
            onto_CF[columns] += low_SC[rows, columns].t() @ x_SF[rows]
