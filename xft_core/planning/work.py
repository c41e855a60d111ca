"""Tokens and floating-point work of trainings: what models are compared at, and how long a training of equal work is.

    training   3 forward passes for each token: the forward pass itself, gradients of activations and of weights
    mixing     2 forward passes (activations' gradients need no weights'), and the gradients of the FFNs' weights; towards the
               Mixture-of-Experts (objective distill) a forward pass of that too

What gradient checkpointing computes again is not counted, nor padding, nor what is done once a step (the optimizer, summing
experts): equal settings have equal shares of it.
"""

import math

from xft_core.planning.shape import Shape
from xft_core.recipe.sections import UpcycleConfig, WorkToMatch


def training_flops(shape: Shape, upcycle: UpcycleConfig | None, length: float) -> float:
    """Floating-point operations of training on one token of sequences of ``length`` tokens."""
    return 3 * shape.forward_flops(length, upcycle)


def mixing_flops(shape: Shape, length: float, teacher: UpcycleConfig | None = None) -> float:
    """The same of learning mixing coefficients, which takes a step of the merged dense model; with a ``teacher`` its forward
    pass comes on top."""
    of_teacher = shape.forward_flops(length, teacher) if teacher else 0.0
    return 2 * shape.forward_flops(length) + 2 * shape.num_layers * shape.ffn + of_teacher


def mixing_passes(cross_validation: bool) -> float:
    """How often the rows of a mixing are gone through for each of its epochs: with cross-validation, four strengths learn on
    two of three folds each, three times, before learning itself."""
    return 1.0 + (4 * 3 * 2 / 3 if cross_validation else 0.0)


def router_start_rows(train_rows: int) -> int:
    """Rows that a router starts from (stages/router_start.py): a hundredth, at least 256 if there are so many."""
    return min(train_rows, max(256, train_rows // 100))


def steps_of(sequences: float, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a training on ``sequences`` for ``epochs``, as the trainer counts them."""
    by_epochs = math.ceil(math.ceil(sequences / batch_size) * epochs)
    return min(by_epochs, max_steps or by_epochs)


def matched_steps(work: WorkToMatch, shape: Shape, sequences: float, batch_size: int, length: float) -> int:
    """Optimizer steps of a dense training that takes as many tokens, or as much floating-point work, as ``work``; at least 1.

    Args:
        work: what is to be matched.
        shape: the dense model's sizes.
        sequences: those of an epoch, the same for all.
        batch_size: sequences of an optimizer step, the same for the Mixture-of-Experts.
        length: tokens of a sequence on average.
    """
    tuned = steps_of(sequences, batch_size, work.epochs, work.max_steps) * batch_size if work.epochs else 0.0
    dense = sequences * work.dense_epochs
    mixed = sequences * work.mixing_epochs
    if work.mixing_max_steps:
        mixed = min(mixed, work.mixing_max_steps * work.mixing_batch_size)
    if work.kind == "flops":
        of_dense = training_flops(shape, None, length)
        tuned *= training_flops(shape, work.upcycle, length) / of_dense
        mixed *= mixing_flops(shape, length) / of_dense
    return max(1, round((tuned + dense + mixed) / batch_size / work.runs))
