"""Weighted sums of 16-bit experts in one pass over the mapped checkpoint, without a copy, computed by embedding bags.

The rows of a tensor in all experts are rows of one table, whose rows begin every few elements of the shard and overlap. A
row of the sum is a bag that contains this row of every expert. 16-bit bags are summed in fp32 and rounded once, but torch
requires their weights in the table's dtype. A weight is therefore split into three numbers that add up to its 24 bits, each
with the same row, which is then in the cache. ``python -m performance.merge`` measures it.

Shape suffixes: n experts, P parts of a weight, b = n * P members of a bag, B rows of a block, D elements of a row.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import embedding_bag

PARTS = 3  # of a weight: 8 bits each in bf16
BLOCK_ELEMENTS = 2**20  # of the sum: 2 MiB


class ExpertRows:
    """One tensor of all experts as rows of a table over the bytes of a shard.

    Args:
        shard: the bytes of the shard.
        starts: byte offset of each expert's tensor in the shard.
        shape: of the tensor.
        dtype: of the tensor, 2 bytes wide.
    """

    def __init__(self, shard: torch.Tensor, starts: list[int], shape: list[int], dtype: torch.dtype) -> None:
        assert dtype.itemsize == 2
        self.shape, self.row = shape, math.prod(shape[1:])
        first = min(starts)
        self._start_n = torch.tensor(starts).sub(first) // 2
        self._step = math.gcd(self.row, *self._start_n.tolist())
        elements = shard[first:first + 2 * (int(self._start_n.max()) + math.prod(shape))].view(dtype)
        self._table = elements.as_strided([(len(elements) - self.row) // self._step + 1, self.row], [self._step, 1])

    def weighted_sums(self, weight_n: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """sum_i weight_i W_i for fp64 weights, as ``(rows, B of them summed)`` in the tensor's dtype and shape."""
        used_n = weight_n != 0
        parts_nP, rest_n = [], weight_n[used_n]
        for _ in range(PARTS):
            parts_nP.append(rest_n.to(self._table.dtype))
            rest_n = rest_n - parts_nP[-1].to(rest_n.dtype)
        num_rows, *row = self.shape
        size = min(num_rows, max(1, BLOCK_ELEMENTS // self.row))
        weight_Bb = torch.stack(parts_nP, dim=1).flatten().repeat(size, 1)
        bag_b = self._start_n[used_n].repeat_interleave(PARTS)
        index_Bb = (bag_b + torch.arange(size)[:, None] * self.row) // self._step
        for start in range(0, num_rows, size):
            count = min(size, num_rows - start)
            row_Bb = index_Bb[:count] + start * self.row // self._step
            sum_BD = embedding_bag(row_Bb, self._table, mode="sum", per_sample_weights=weight_Bb[:count])
            yield slice(start, start + count), sum_BD.view(count, *row)
