"""The weighted mean of whole dense models of one architecture, a few tensors at a time.

    W = sum_m w_m W_m      soup (arXiv 2203.05482): w_m = 1 / M;      WiSE-FT (arXiv 2109.01903): (1 - g) base + g tuned

Sums are in fp64 and rounded once: a model with weight 1 among zeros is reproduced bit for bit, and so are equal models.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from xft_core.errors import CheckpointError
from xft_core.models.config import dense_config_of, is_moe, save_dense_config, transformers_config
from xft_core.models.discovery import family_of
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, write_checkpoint

BLOCK_ELEMENTS = 2**22  # of a tensor, summed at once: 32 MiB in fp64


def average_models(sources: Mapping[str, Path], weights: Mapping[str, float], target: Path) -> int:
    """Write the mean of dense models by ``weights``, which sum to one, into ``target``. Returns its number of parameters.

    Everything but the weights (configuration, tokenizer, end tokens) comes from the last model, and so does the dtype of
    each tensor. Embeddings that are tied there stay tied.

    Raises CheckpointError for an upcycled model, and for models whose tensors differ in name or shape.
    """
    assert list(sources) == list(weights) and math.isclose(math.fsum(weights.values()), 1)
    with ExitStack() as stack:
        readers: dict[str, CheckpointReader] = {}
        for name, directory in sources.items():
            if is_moe(directory):
                raise CheckpointError(f"{str(directory)!r} is a Mixture-of-Experts. Only dense models are averaged: merge it.")
            readers[name] = stack.enter_context(CheckpointReader(directory))
            dense_config = dense_config_of(readers[name])  # after the loop: of the last model; gives tensors the family's names
        last = readers[name]
        plans = []
        for tensor in last.names():
            parts = [(reader, weights[name]) for name, reader in readers.items() if weights[name]]
            for reader, _ in parts:
                if tensor not in reader or reader.shape(tensor) != last.shape(tensor):
                    found = reader.shape(tensor) if tensor in reader else "missing"
                    raise CheckpointError(
                        f"Models of different forms cannot be averaged: {tensor!r} is {last.shape(tensor)} in "
                        f"{str(last.directory)!r} and {found} in {str(reader.directory)!r}.")
            dtype = last.dtype(tensor)
            if not dtype.is_floating_point:
                plans.append(last.copy_plan(tensor))
                continue
            plans.append(TensorPlan(tensor, last.shape(tensor), dtype, lambda tensor=tensor, parts=parts, dtype=dtype: _blocks(  # type: ignore[misc]
                tensor, parts, dtype)))
        if family_of(transformers_config(dense_config)).reads_pictures:  # files have several conventions
            plans = [replace(plan, name=last.name_in_file(plan.name)) for plan in plans]
        write_checkpoint(target, plans)
    save_dense_config(target, dense_config, plans)
    copy_beside_weights(last.directory, target)
    return sum(math.prod(plan.shape) for plan in plans)


def _blocks(
    name: str, parts: list[tuple[CheckpointReader, float]], dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """The elements of sum_m w_m W_m in their order."""
    (first, weight), *others = [(reader.get(name).flatten(), weight) for reader, weight in parts]
    for start in range(0, len(first), BLOCK_ELEMENTS):
        block = slice(start, start + BLOCK_ELEMENTS)
        total = first[block].double() * weight
        for tensor, share in others:
            total += tensor[block].double() * share
        yield total.to(dtype)
