"""The order of the training data: of the seed and the epoch alone, whoever works through it."""

from collections.abc import Iterator

import torch

from xft_core.data.packing import NOTHING


class SeededOrder(torch.utils.data.Sampler[int]):
    """Sequence numbers of one epoch (``epoch``, to be set), filled up with NOTHING to a multiple of ``multiple``.

    With ``multiple`` the sequences of one forward pass in every process, all have equally many passes, and those which one
    process alone would not have made are empty.
    """

    def __init__(self, num_sequences: int, seed: int, multiple: int = 1) -> None:
        self.num_sequences, self.seed, self.multiple, self.epoch = num_sequences, seed, multiple, 0

    def __len__(self) -> int:
        return -(-self.num_sequences // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.num_sequences, generator=generator).tolist()
        yield from [NOTHING] * (len(self) - self.num_sequences)
