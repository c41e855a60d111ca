"""The order of the training data, which depends only on the seed and the epoch."""

from collections.abc import Iterator

import torch

from xft_core.data.packing import NOTHING


class SeededOrder(torch.utils.data.Sampler[int]):
    """Sequence numbers of one epoch (set ``epoch`` first), padded with NOTHING to a multiple of ``multiple``.

    If ``multiple`` is the number of sequences in one forward pass over all processes, every process makes the same number of
    passes, and passes that a single process would not make are empty.
    """

    def __init__(self, num_sequences: int, seed: int, multiple: int = 1) -> None:
        self.num_sequences, self.seed, self.multiple, self.epoch = num_sequences, seed, multiple, 0

    def __len__(self) -> int:
        return -(-self.num_sequences // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.num_sequences, generator=generator).tolist()
        yield from [NOTHING] * (len(self) - self.num_sequences)
