"""The test before learning whether there is anything to learn: the objective at uniform mixing and at a few other points.

It probes along lambda, along gamma if the base model is given, along the falling gradient of alpha and lambda for three
lengths, at the corners where one routed expert has the whole share, and in a few directions drawn from the seed. Each probe is
one forward pass of the dense model over the rows; the gradient is one backward pass.

Points that the recipe's learning cannot reach (a lambda other than a fixed one, a gamma that is not learned) are measured and
reported, but do not count as headroom. Shape suffixes: L layers, R routed experts.
"""

import logging
from collections.abc import Iterator

import torch

from xft_core.data.rows import Rows
from xft_core.mixing.learning import objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.objective import Objective
from xft_core.mixing.parameters import MixingParameters
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.group import summed
from xft_core.store.results.mix import HeadroomFile, Probe

logger = logging.getLogger(__name__)

SHARED_WEIGHTS = (0.25, 0.5, 0.9)  # lambda
DELTA_SCALES = (0.5, 0.7, 0.85, 1.15)  # gamma
STEP_LENGTHS = (0.3, 1.0, 3.0)  # largest change of an alpha, or of lambda's logit
RANDOM_DIRECTIONS = 3  # alpha from a normal distribution


def look_for_headroom(
    mixed: MixedModel, rows: Rows, merge: MergeConfig, seed: int, shared_weight_start: float, objective: Objective,
) -> HeadroomFile:
    """Measure on ``rows``. If there are several processes, all must call it, and all get the same result."""
    parameters = MixingParameters(mixed.mixture, merge, mixed.granularity, shared_weight_start)
    start = {name: tensor.detach().clone() for name, tensor in parameters.tensors.items()}

    def loss(gradient: bool = False) -> float:
        with torch.no_grad():
            weight, outside = parameters.with_base(parameters.shares()), parameters.outside_scale()
        mixed.apply(weight, 1.0 if outside is None else float(outside.detach()))
        return objective_now(mixed, rows, merge.micro_batch_size, objective, gradient)

    uniform = loss(gradient=True)
    downhill = _downhill(mixed, parameters)
    probes = [*_other_lambdas_and_gammas(mixed, rows, merge, parameters, objective)]
    for name, values in _directions(parameters, downhill, seed):
        _set(parameters, start | values)
        probes.append(Probe(name=name, loss=loss(), learnable=True))
    _set(parameters, start)
    found = HeadroomFile(rows=len(rows), uniform=uniform, threshold=merge.headroom_threshold, probes=probes)
    if not any(probe.learnable for probe in probes):
        found = found.model_copy(update={"probes": [*probes, Probe(name="uniform", loss=uniform, learnable=True)]})
    logger.info(
        "mix: headroom %.4f nats (uniform %.4f; lowest of all %.4f at %s)", found.headroom, uniform, found.best.loss,
        found.best.name)
    return found


def _downhill(mixed: MixedModel, parameters: MixingParameters) -> dict[str, torch.Tensor]:
    """Minus the gradient of alpha and of lambda's logit, scaled so that its largest element is one."""
    names = [name for name in ("alpha", "shared_logit") if name in parameters.tensors]
    with torch.enable_grad():
        weight = parameters.with_base(parameters.shares())
    gradients = torch.autograd.grad(weight, [parameters.tensors[name] for name in names], summed(mixed.weight_gradient()))
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    return {name: -gradient / largest for name, gradient in zip(names, gradients, strict=True)} if largest else {}


def _directions(
    parameters: MixingParameters, downhill: dict[str, torch.Tensor], seed: int,
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Named values of the parameters that differ from the start."""
    alpha = parameters.tensors["alpha"]
    at_start = {name: parameters.tensors[name].detach().clone() for name in downhill}
    for length in STEP_LENGTHS if downhill else ():
        yield f"gradient {length:g}", {name: at_start[name] + length * step for name, step in downhill.items()}
    if parameters.num_routed == 1:
        return
    for expert in range(parameters.num_routed):
        corner = torch.full_like(alpha, -torch.inf, requires_grad=False)
        corner[..., expert] = 0
        yield f"expert {expert + 1}", {"alpha": corner}
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, RANDOM_DIRECTIONS + 1):
        yield f"random {number}", {"alpha": torch.randn(alpha.shape, dtype=alpha.dtype, generator=generator)}


def _other_lambdas_and_gammas(
    mixed: MixedModel, rows: Rows, merge: MergeConfig, parameters: MixingParameters, objective: Objective,
) -> Iterator[Probe]:
    def probe(name: str, changes: dict[str, float], learnable: bool) -> Probe:
        other = MixingParameters(
            mixed.mixture, merge.model_copy(update=changes), mixed.granularity, shared_weight_start=0.5)
        with torch.no_grad():
            for item in other.tensors:  # what the probe does not change
                other.tensors[item].copy_(parameters.tensors[item])
            weight, outside = other.with_base(other.shares()), other.outside_scale()
        mixed.apply(weight, 1.0 if outside is None else float(outside))
        return Probe(name=name, loss=objective_now(mixed, rows, merge.micro_batch_size, objective), learnable=learnable)

    if mixed.mixture.upcycle.shared_expert:
        for value in SHARED_WEIGHTS:
            yield probe(f"lambda {value:g}", {"shared_expert_weight": value}, merge.shared_expert_weight is None)
    if mixed.mixture.base is not None:
        for value in DELTA_SCALES:
            yield probe(f"gamma {value:g}", {"delta_scale": value}, merge.delta_scale is None)


@torch.no_grad()
def _set(parameters: MixingParameters, values: dict[str, torch.Tensor]) -> None:
    for name, tensor in parameters.tensors.items():
        tensor.copy_(values[name])
