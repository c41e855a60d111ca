"""Tokens and floating-point work of trainings, used to compare models and to find the length of a training of equal work.

    training   3 forward passes per token: the forward pass itself, gradients of activations, gradients of weights
    mixing     2 forward passes (gradients of activations do not need those of weights), and the gradients of the FFNs'
               weights; with objective distill, also a forward pass of the Mixture-of-Experts
    routers    their start, if it is no random one: forward passes of the dense models, to label rows and for the hidden states;
               with router_start trained, also 2 forward passes (the routers' own gradients are negligible), and the loss before
               and after

Recomputation by gradient checkpointing, padding and work done once per step (the optimizer, summing experts) are not
counted: equal settings have equal shares of them.
"""

import math

from xft_core.planning.shape import Shape
from xft_core.recipe.sections import UpcycleConfig, WorkToMatch

ROUTER_PASSES = 4  # over the rows, to train the start of the routers (UpIT, arXiv 2410.01610)


def training_flops(shape: Shape, upcycle: UpcycleConfig | None, length: float) -> float:
    """Floating-point operations of training on one token of sequences of ``length`` tokens."""
    return 3 * shape.forward_flops(length, upcycle, training=True)


def mixing_flops(shape: Shape, length: float, teacher: UpcycleConfig | None = None) -> float:
    """As ``training_flops``, for learning mixing coefficients, which takes a step of the merged dense model. A ``teacher``
    adds its forward pass."""
    of_teacher = shape.forward_flops(length, teacher) if teacher else 0.0
    return 2 * shape.forward_flops(length) + 2 * shape.num_layers * shape.ffn + of_teacher


def mixing_passes(cross_validation: bool) -> float:
    """Number of passes over the rows for each epoch of mixing. With cross-validation, each of four penalties first learns on
    two of three folds, three times."""
    return 1.0 + (4 * 3 * 2 / 3 if cross_validation else 0.0)


def router_start_rows(train_rows: int) -> int:
    """Rows that initialize a router (stages/labelled_rows.py): a hundredth of all, and at least 256 if there are that many."""
    return min(train_rows, max(256, train_rows // 100))


def router_start_flops(shape: Shape, upcycle: UpcycleConfig, length: float) -> float:
    """As ``training_flops``, for everything that starts the routers (stages/router_start.py, router_training.py): the losses of
    every candidate expert of a row, hidden states and sums over these, and all passes that train the start."""
    if upcycle.router_start == "random":
        return 0.0
    passes = 1 if upcycle.experts_from == "branches" else 1 + upcycle.num_routed
    trained = (2 * ROUTER_PASSES + 2) * shape.forward_flops(length, upcycle) if upcycle.router_start == "trained" else 0.0
    return passes * shape.forward_flops(length) + 2.0 * shape.num_layers * shape.hidden_size**2 + trained


def steps_of(sequences: float, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a training on ``sequences`` for ``epochs``, as the trainer counts them."""
    by_epochs = math.ceil(math.ceil(sequences / batch_size) * epochs)
    return min(by_epochs, max_steps or by_epochs)


def matched_steps(
    work: WorkToMatch, shape: Shape, sequences: float, batch_size: int, length: float, train_rows: int | None = None,
) -> int:
    """Optimizer steps of a dense training that takes as many tokens, or as much floating-point work, as ``work``; at least 1.

    Args:
        work: the work to match.
        shape: the dense model's sizes.
        sequences: sequences per epoch, the same for all.
        batch_size: sequences per optimizer step, the same for the Mixture-of-Experts.
        length: average tokens per sequence.
        train_rows: training rows, to count the start of the routers.
    """
    tuned = steps_of(sequences, batch_size, work.epochs, work.max_steps) * batch_size if work.epochs else 0.0
    dense = sequences * work.dense_epochs
    mixed = sequences * work.mixing_epochs
    if work.mixing_max_steps:
        mixed = min(mixed, work.mixing_max_steps * work.mixing_batch_size)
    mixed *= mixing_passes(work.cross_validation)
    start_share = router_start_rows(train_rows) / train_rows if train_rows and work.router_start != "random" else 0.0
    started = start_share * sequences * (ROUTER_PASSES if work.router_start == "trained" else 0)
    if work.kind == "flops":
        assert work.upcycle is not None
        of_dense = training_flops(shape, None, length)
        tuned *= training_flops(shape, work.upcycle, length) / of_dense
        mixed *= mixing_flops(shape, length, work.upcycle if work.distills else None) / of_dense
        row_length = sequences * length / (train_rows or 1)  # here each row is a sequence of its own
        started = start_share * sequences * router_start_flops(shape, work.upcycle, row_length) / of_dense
    return max(1, round((tuned + dense + mixed + started) / batch_size / work.runs))
