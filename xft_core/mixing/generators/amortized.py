"""Stored generators that are trained on earlier runs: coefficients for a new mixture without learning.

    min over the generator's weights   sum_runs mean_(l,i) (alpha_(l,i)(features) - alpha*_(l,i))^2

alpha* are the logarithms of the routed shares that a run learned, minus their mean in each layer. A generator is judged by
leaving one run out: of the loss that learning gained there over uniform mixing, the share that the prediction gains.

Shape suffixes: L layers, N experts, R routed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from xft_core.errors import ArtifactError
from xft_core.mixing.generators.attention import AttentionGenerator
from xft_core.mixing.generators.features import Features
from xft_core.mixing.generators.graph import GraphGenerator

GENERATOR_FILE = "generator.safetensors"
WEIGHT_DECAY = 1e-2

Generator = AttentionGenerator | GraphGenerator
KINDS: dict[str, type[AttentionGenerator] | type[GraphGenerator]] = {
    "attention": AttentionGenerator, "graph": GraphGenerator}


@dataclass(frozen=True)
class Example:
    """One earlier run: the features of its experts, and the routed shares that it learned, L,R (of any scale)."""

    features: Features
    routed_LR: torch.Tensor

    @property
    def target_LR(self) -> torch.Tensor:
        """alpha*: mean 0 in every layer."""
        alpha_LR = self.routed_LR.clamp(min=1e-12).log()
        return alpha_LR - alpha_LR.mean(dim=1, keepdim=True)


def new_generator(kind: str, features: Features, seed: int) -> Generator:
    """A generator that still gives uniform mixing."""
    return KINDS[kind](features, seed)


def meta_train(kind: str, examples: Sequence[Example], seed: int, steps: int, learning_rate: float) -> tuple[Generator, float]:
    """Train a generator with AdamW to give the examples' alpha from their features. Returns it and its mean squared error."""
    generator = new_generator(kind, examples[0].features, seed)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    error = torch.zeros(())
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            error = torch.stack([_error(generator, example) for example in examples]).mean()
            error.backward()
            optimizer.step()
    return generator.requires_grad_(False), float(error.detach())


def _error(generator: Generator, example: Example) -> torch.Tensor:
    generator.use(example.features)
    alpha_LR = generator()
    return (alpha_LR - alpha_LR.mean(dim=1, keepdim=True) - example.target_LR).square().mean()


def save_generator(generator: Generator, directory: Path) -> None:
    """Write generator.safetensors into ``directory``."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in generator.state_dict().items()}
    save_file(tensors, directory / GENERATOR_FILE, {"kind": generator.kind})


def load_generator(directory: Path, kind: str, features: Features) -> Generator:
    """The generator in ``directory``, for these features. Raises ArtifactError if there is none, or one of another kind."""
    path = directory / GENERATOR_FILE
    try:
        with safe_open(path, framework="pt") as stored:
            found = (stored.metadata() or {}).get("kind")
        generator = new_generator(kind, features, seed=0)
        if found != kind:
            raise ArtifactError(
                f"{str(path)!r} holds a generator of kind {found}, but merge.generator is {kind}: set it to {found}.")
        generator.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        raise ArtifactError(f"{str(path)!r} is not a generator. Create one with python -m xft_core meta-train.") from None
    return generator.requires_grad_(False)
