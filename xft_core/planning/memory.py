"""Peak memory of every stage, in bytes: weights, gradients, optimizer, and the working memory of a step.

``performance/planning.py`` checks this memory model against measured stages (log: docs/measurements/planning.md):

    training   weights + gradients + optimizer + max(activations + loss, one parameter's update) + freed memory
    loss       one block of logits twice in fp32, the head's gradient, hidden states and their gradient (response_loss.py)
    mixing     weights + gradients of FFNs + activations + loss, or one block of experts, + freed memory
    held out   weights + loss or one layer's work, of TOKENS_PER_BATCH tokens
    processes  if there are several, each has its part of weights, gradients and optimizer, and temporarily one complete layer,
               the embeddings and the head, with their gradients (FSDP2); the first also has the complete model, to measure it

``certain`` is the memory needed for any data: weights, gradients if they are kept between forward passes, and the
optimizer state. Only this part can cause a recipe to be rejected.
"""

import math
from dataclasses import dataclass, replace

from xft_core.planning.shape import Shape, low_rank_columns
from xft_core.recipe.inactive_fields import measuring_precision, needs_features
from xft_core.recipe.sections import MergeConfig, Precision, Recipe, SftConfig, UpcycleConfig
from xft_core.recipe.sections.merge import CLOSED_FORMS, ON_DELTAS

WIDTH = {"fp32": 4, "bf16": 2, "bf16_mixed": 4}  # bytes of a weight in memory
ARITHMETIC = {"fp32": 4, "bf16": 2, "bf16_mixed": 2}  # bytes of an activation
HELD_OUT_TOKENS = 4096  # xft_core.training.held_out.TOKENS_PER_BATCH
BLOCK_LOGITS, LEAST_BLOCK = 2**25, 256  # as in xft_core.training.response_loss
PROMPT_TOKENS = 512  # assumed length of a benchmark's prompts
FREED = 100e6  # freed memory that the allocator keeps, as shown by performance/planning.py
BLOCK_OF_EXPERTS = 2.0**28  # most bytes that mixing handles at once, on an accelerator (xft_core.mixing.mixture)
LAYERS_BYTES = 2.0**32  # most bytes of statistics at once (xft_core.mixing.operators.calibration)
PROCESS = 350e6  # a process with torch and transformers loaded but no model, as measured by performance/planning.py


@dataclass(frozen=True)
class Memory:
    """Peak memory of a stage in bytes. ``working``: activations, loss and temporaries at the worst moment."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    working: float = 0.0
    certain: float = 0.0
    average: float = 0.0  # of the weights over the training

    @property
    def total(self) -> float:
        """The total, without the process itself."""
        return self.weights + self.gradients + self.optimizer + self.working + self.average


def training_memory(shape: Shape, upcycle: UpcycleConfig | None, sft: SftConfig, sequence: int) -> Memory:
    """SFT of the dense model (``upcycle`` None) or of the Mixture-of-Experts, with sequences of ``sequence`` tokens. If there
    are several processes, this is the memory of one."""
    processes = sft.num_processes * sft.num_nodes
    if processes > 1:
        return _sharded(shape, upcycle, sft, sequence, processes)
    parameters = shape.moe_parameters(upcycle) if upcycle else shape.parameters
    largest = shape.largest_matrix(upcycle)
    width, tokens = WIDTH[sft.precision], sft.micro_batch_size * sequence
    weights, trained = float(parameters * width), float((parameters - shape.beside) * width)
    optimizer = 2 * trained if sft.optimizer == "adamw" else _factored(shape, upcycle) * 4.0
    if sft.adapter == "lora":  # adapters are always in fp32
        adapters = 4.0 * shape.adapters(sft.adapter_rank, of_ffn=upcycle is None)
        fixed = float(shape.parameters if upcycle is None else shape.parameters - shape.num_layers * shape.ffn)
        weights, trained = weights + adapters, (parameters - fixed) * width + adapters
        optimizer = 2 * trained if sft.optimizer == "adamw" else min(optimizer, trained)
        largest = largest if upcycle else shape.hidden_size * sft.adapter_rank
    gradients = trained
    is_fused = upcycle is not None and upcycle.mode == "fusion"
    layer = tokens * layer_activations(shape, None if is_fused else upcycle, sft.precision, sequence)
    layer += shape.ffn * (width + 4) if is_fused else 0  # mixed weights, and their sum in fp32
    if sft.gradient_checkpointing:
        activations = tokens * shape.num_layers * shape.hidden_size * width + layer
    else:
        activations = shape.num_layers * layer
    head = shape.vocabulary * shape.hidden_size
    casts = 2 * (parameters - shape.embeddings + head) if sft.precision == "bf16_mixed" else 0
    # A new gradient exists next to the one it is added to; those of stacked experts are computed one by one, then joined.
    new_gradient = largest * width * (2 if upcycle and upcycle.expert_rank is None else 1)
    accumulates = sft.batch_size > sft.micro_batch_size
    loss = loss_memory(shape, tokens, sft.precision, trains_head=sft.adapter == "none")
    forward = activations + casts + max(loss, new_gradient)
    update = largest * 4 * (4 if sft.precision == "bf16" else 3)
    held_out = held_out_memory(shape, upcycle, sft.precision, sequence)
    kept = gradients if accumulates else 0.0
    peak = max(kept + forward, gradients + update, held_out - optimizer)
    average = 4.0 * parameters if sft.average != "none" else 0.0
    return Memory(
        weights, gradients, optimizer, max(peak - gradients, 0.0) + FREED,
        certain=weights + gradients + optimizer + average, average=average)


def _sharded(shape: Shape, upcycle: UpcycleConfig | None, sft: SftConfig, sequence: int, processes: int) -> Memory:
    """Training memory of the process with the largest part."""
    alone = training_memory(shape, upcycle, sft.model_copy(update={"num_processes": 1, "num_nodes": 1}), sequence)
    width = WIDTH[sft.precision]
    whole = shape.moe_parameters(upcycle) if upcycle else shape.parameters
    part = largest_part(shape, upcycle, processes) / whole
    gathered = 2.0 * width * (shape.embeddings + (whole - shape.embeddings) / shape.num_layers)
    held_out = alone.weights + held_out_memory(shape, upcycle, sft.precision, sequence)
    kinds = (alone.weights, alone.gradients, alone.optimizer, alone.average)
    weights, gradients, optimizer, average = (part * kind for kind in kinds)
    certain = weights + gradients + optimizer + average
    working = max(alone.working + gathered, held_out - certain)
    return Memory(weights, gradients, optimizer, working, certain=certain, average=average)


def largest_part(shape: Shape, upcycle: UpcycleConfig | None, processes: int) -> float:
    """Parameters that the first of several processes keeps. Tensors are split along their first dimension. Stacked experts
    are split between experts, so with 7 experts in 4 parts, the largest part has 2."""
    whole = shape.moe_parameters(upcycle) if upcycle else shape.parameters
    if upcycle is None:
        return whole / processes
    if upcycle.expert_rank is not None:
        # The tensors of experts are split between experts, and those of groups between groups.
        def largest(columns: int, count: int) -> float:
            share = shape.num_layers * shape.low_rank(upcycle) * columns / low_rank_columns(upcycle)
            return share * math.ceil(count / processes) / count

        experts, groups = upcycle.num_routed, upcycle.groups or 0
        shared = whole - shape.num_layers * shape.low_rank(upcycle)
        parts = largest(experts * upcycle.expert_rank, experts)
        return shared / processes + parts + (largest(groups * upcycle.group_rank, groups) if groups else 0.0)
    routed = upcycle.num_routed
    stacked = shape.num_layers * routed * shape.ffn
    return (whole - stacked) / processes + stacked * math.ceil(routed / processes) / routed


def mix_memory(shape: Shape, upcycle: UpcycleConfig, merge: MergeConfig, sequence: int) -> Memory:
    """The mix stage: one dense model, gradients of its FFNs if the coefficients are learned, and the MoE itself if they need
    its routing, statistics, features or outputs."""
    width = WIDTH[merge.precision]
    weights = shape.parameters * width
    matrix = float(shape.hidden_size * shape.ffn_size * width)
    block = min(4 * matrix, BLOCK_OF_EXPERTS)
    held_out = max(held_out_memory(shape, None, merge.precision, sequence), block)
    distills = merge.method == "learned" and merge.objective == "distill"
    if merge.method in ("routing", *CLOSED_FORMS) or needs_features(merge) or distills:
        weights += shape.moe_parameters(upcycle) * width
        held_out = max(held_out, held_out_memory(shape, upcycle, merge.precision, sequence))
    if merge.method in CLOSED_FORMS:
        layer = statistics_of_layer(shape, upcycle, merge.method)
        held_out += max(layer, min(LAYERS_BYTES, shape.num_layers * layer))
        if merge.method == "fisher":  # activations for a row's backward pass
            activations = layer_activations(shape, upcycle, merge.precision, sequence, all_trained=False)
            held_out += sequence * shape.num_layers * activations
    elif merge.method in ON_DELTAS:  # one tensor of all experts, at double width, and the operator's results
        held_out = max(held_out, 5.0 * upcycle.num_experts * shape.hidden_size * shape.ffn_size * 8)
    if merge.method != "learned":
        return Memory(weights, working=held_out + FREED, certain=weights)
    gradients = shape.num_layers * shape.ffn * width
    if merge.delta_scale is None and merge.delta_scale_scope == "model":
        gradients = shape.parameters * width
    tokens = merge.micro_batch_size * sequence
    activations = tokens * shape.num_layers * layer_activations(shape, None, merge.precision, sequence, all_trained=False)
    step = max(activations + max(loss_memory(shape, tokens, merge.precision, trains_head=False), matrix), block)
    return Memory(weights, gradients, working=max(step, held_out - gradients) + FREED, certain=weights)


def statistics_of_layer(shape: Shape, upcycle: UpcycleConfig, method: str) -> float:
    """Bytes of the statistics of one layer's experts for regmean or fisher, in fp32."""
    ups = 2 if shape.gated else 1
    gram = ups * shape.hidden_size**2 + shape.ffn_size**2
    return 4.0 * upcycle.num_experts * (shape.ffn if method == "fisher" else gram)


def merge_memory(shape: Shape, upcycle: UpcycleConfig, precision: str, sequence: int) -> Memory:
    """The merge stage: a few matrices, then the measurement of the merged model."""
    weights = shape.parameters * WIDTH[precision]
    return Memory(weights, working=held_out_memory(shape, None, precision, sequence), certain=weights)


def row_losses_memory(shape: Shape, upcycle: UpcycleConfig | None, precision: str, sequence: int) -> Memory:
    """The row_losses stage: the model, all logits of a batch, and a copy of one row's logits in fp32."""
    width = WIDTH[precision]
    weights = float((shape.moe_parameters(upcycle) if upcycle else shape.parameters) * width)
    tokens = max(1, HELD_OUT_TOKENS // sequence) * sequence
    logits = shape.vocabulary * (tokens * width + 8.0 * sequence)
    return Memory(weights, working=max(logits, tokens * _inference_layer(shape, upcycle, width)) + FREED, certain=weights)


def router_start_memory(shape: Shape, upcycle: UpcycleConfig, precision: Precision, sequence: int) -> Memory:
    """The upcycle stage with router_start ridge: one dense model that measures rows, and the sums for as many layers as fit
    into LAYERS_BYTES, in fp64. With trained, the Mixture-of-Experts follows, with the activations of one row."""
    measured = row_losses_memory(shape, None, precision, sequence)
    layer = 8.0 * shape.hidden_size**2
    ridge = replace(measured, working=measured.working + 2 * layer + min(max(layer, LAYERS_BYTES), shape.num_layers * layer))
    if upcycle.router_start == "ridge":
        return ridge
    trained = _router_training_memory(shape, upcycle, measuring_precision(precision), sequence)
    return replace(max(ridge, trained, key=lambda item: item.total), certain=max(ridge.certain, trained.certain))


def _router_training_memory(shape: Shape, upcycle: UpcycleConfig, precision: Precision, sequence: int) -> Memory:
    weights = float(shape.moe_parameters(upcycle) * WIDTH[precision])
    gradients = 4.0 * shape.num_layers * upcycle.num_routed * shape.hidden_size  # of W_1, in fp32
    layer = layer_activations(shape, upcycle, precision, sequence, all_trained=False)
    step = sequence * shape.num_layers * layer + loss_memory(shape, sequence, precision, trains_head=False)
    return Memory(weights, gradients, 2 * gradients, step + FREED, certain=weights + 3 * gradients)


def generate_memory(shape: Shape, upcycle: UpcycleConfig | None, recipe: Recipe) -> Memory:
    """The generate stage: weights, keys and values of a batch at maximum length, and the forward pass of the prompts."""
    config = recipe.generate
    width = WIDTH[config.precision]
    weights = float((shape.moe_parameters(upcycle) if upcycle else shape.parameters) * width)
    length = PROMPT_TOKENS + config.max_new_tokens
    cache = config.batch_size * length * shape.num_layers * 2 * shape.key_size * width
    prompts = config.batch_size * PROMPT_TOKENS * _inference_layer(shape, upcycle, width)
    return Memory(weights, working=cache + max(prompts, 3.0 * config.batch_size * shape.vocabulary * 4), certain=weights)


def held_out_memory(shape: Shape, upcycle: UpcycleConfig | None, precision: str, sequence: int) -> float:
    """The held-out loss: one batch without gradients, with the loss or a layer's work, whichever is larger."""
    tokens = max(1, HELD_OUT_TOKENS // sequence) * sequence
    layer = tokens * _inference_layer(shape, upcycle, WIDTH[precision])
    return max(loss_memory(shape, tokens, precision, gradients=False), layer) + tokens * shape.hidden_size * WIDTH[precision]


def loss_memory(shape: Shape, tokens: int, precision: str, gradients: bool = True, trains_head: bool = True) -> float:
    """Peak memory of the loss of ``tokens`` tokens, if all of them are response tokens."""
    if not shape.plain_head:  # all logits, a copy of the response logits in fp32, and their log-softmax
        return 12.0 * tokens * shape.vocabulary
    block = 8.0 * max(min(BLOCK_LOGITS, tokens * shape.vocabulary), min(LEAST_BLOCK, tokens) * shape.vocabulary)
    hidden = tokens * shape.hidden_size * ARITHMETIC[precision] * (2 if gradients else 1)
    head = shape.vocabulary * shape.hidden_size * (4 if precision == "fp32" else 6)
    return block + hidden + (head if gradients and trains_head else 0)


def layer_activations(
    shape: Shape, upcycle: UpcycleConfig | None, precision: str, sequence: int, all_trained: bool = True,
) -> float:
    """Bytes that one layer keeps for its backward pass, per token.

    A norm keeps its input and result in fp32, and the inputs of the next matrices. Attention keeps the queries, keys, values
    and outputs of every query head (keys and values are repeated), a reordered copy of the output, and the mask. An FFN keeps
    the gate, its activation, up and their product. A routed expert also keeps its input and output. If ``all_trained`` is
    False, attention and norms are frozen and keep less.
    """
    hidden, query, a = shape.hidden_size, shape.query_size, ARITHMETIC[precision]
    ffn = (4 if shape.gated else 2) * shape.ffn_size * a
    if precision == "bf16_mixed":  # every matrix casts its own input
        norms = 2 * 8 * hidden + 5 * a * hidden
    elif all_trained:
        norms = 2 * hidden * (4 + 2 * a)
    else:
        norms = hidden * (8 + a)
    attention = (5 if all_trained else 4) * query * a + sequence * a
    if upcycle is None:
        return norms + attention + ffn
    if upcycle.expert_rank is not None:  # gate and up of the shared weights, their mixture, and the low-rank inputs
        low_rank = low_rank_columns(upcycle) * shape.ffn_matrices * a
        return norms + attention + shape.ffn_matrices * shape.ffn_size * a + low_rank
    routed = upcycle.num_experts_per_tok - int(upcycle.shared_expert)
    experts = routed * (ffn + 2 * hidden * a) + (ffn + hidden * a if upcycle.shared_expert else 0)
    return norms + attention + experts


def _factored(shape: Shape, upcycle: UpcycleConfig | None) -> float:
    """Numbers that Adafactor stores: a row and a column for every matrix."""
    matrices = shape.embeddings / shape.vocabulary / shape.hidden_size * (shape.vocabulary + shape.hidden_size)
    experts = upcycle.num_experts if upcycle and upcycle.expert_rank is None else 1
    of_layer = 2 * (2 * shape.hidden_size + shape.query_size + shape.key_size)
    of_layer += experts * shape.ffn_matrices * (shape.hidden_size + shape.ffn_size)
    if upcycle and upcycle.expert_rank is not None:  # a row and a column for every A and every B
        parts = upcycle.num_routed + (upcycle.groups or 0)
        of_layer += shape.low_rank(upcycle) + shape.ffn_matrices * (parts * (shape.hidden_size + shape.ffn_size))
    return matrices + shape.num_layers * of_layer


def _inference_layer(shape: Shape, upcycle: UpcycleConfig | None, width: int) -> float:
    """Bytes of one layer's work without gradients, per token: norms and attention, then the active FFNs."""
    if upcycle is None or upcycle.expert_rank is not None:
        experts = 1.0
    else:
        experts = upcycle.active_experts(training=False)
    return width * (6 * shape.hidden_size + 2 * shape.query_size + 3 * shape.ffn_size * experts)
