"""Pack several examples into one sequence, with no attention between them.

A batch has no attention mask. Position numbers that restart at zero separate the examples, for every family and attention
kernel of transformers. Shape suffixes: B sequences, S tokens.
"""

from bisect import bisect_left, insort

import torch

from xft_core.data.rows import Rows

IGNORED = -100  # label of a token that does not count in the loss
NOTHING = -1  # number of a sequence without rows


def pack(lengths: list[int], max_length: int) -> list[list[int]]:
    """Pack row numbers into sequences of at most ``max_length`` tokens: best fit, longest rows first.

    Deterministic; no row is lost or split. Raises ValueError for a row longer than ``max_length``.
    """
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, sequence), sorted
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[row] > max_length:
            raise ValueError(f"row {row} has {lengths[row]} tokens, more than max_length ({max_length})")
        place = bisect_left(room, (lengths[row], -1))
        if place < len(room):
            free, sequence = room.pop(place)
        else:
            free, sequence = max_length, len(sequences)
            sequences.append([])
        sequences[sequence].append(row)
        if free > lengths[row]:
            insort(room, (free - lengths[row], sequence))
    return sequences


class PackedRows(torch.utils.data.Dataset[list[int]]):
    """Sequences of row numbers, for a data loader; ``collate`` turns them into tensors."""

    def __init__(self, rows: Rows, max_length: int, packing: bool) -> None:
        self.rows = rows
        self.sequences = pack(rows.lengths(), max_length) if packing else [[index] for index in range(len(rows))]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> list[int]:
        return self.sequences[index] if index != NOTHING else []

    def collate(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        """Return a batch: input_ids, position_ids, labels (all int64, B,S) and token_mask (bool, B,S; False for padding).

        Labels are -100 for prompts and padding; the model shifts them. Every padding token has position 0, so it is an example
        of its own. For rows with pictures, one per sequence, the batch also has the tensors of the model's processor.
        Sequences without rows are left out; if there are no others, the batch is padding.
        """
        sequences = [sequence for sequence in sequences if sequence] or [[]]
        longest = max(2, *(sum(len(self.rows[row][0]) for row in sequence) for sequence in sequences))
        shape = (len(sequences), longest)
        input_ids_BS, position_ids_BS = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels_BS, token_mask_BS = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.bool)
        for number, sequence in enumerate(sequences):
            start = 0
            for row in sequence:
                tokens, _ = self.rows[row]
                end = start + len(tokens)
                input_ids_BS[number, start:end] = tokens
                position_ids_BS[number, start:end] = torch.arange(len(tokens))
                labels_BS[number, start:end] = self.rows.labels(row, IGNORED)
                token_mask_BS[number, start:end] = True
                start = end
        rows = [sequence[0] for sequence in sequences if sequence]
        return {
            "input_ids": input_ids_BS, "position_ids": position_ids_BS, "labels": labels_BS, "token_mask": token_mask_BS,
            **self.rows.pictures(rows, longest)}
