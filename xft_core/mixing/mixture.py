"""From mixing coefficients to one dense FFN, and from its gradient back to theirs.

    W = lambda W_0 + (1 - lambda) sum_{i=1}^{N-1} softmax(alpha)_i W_i         (arXiv 2404.15247, eq. 4)
    W = W_base + gamma (W_mix - W_base)                                        (delta_scale, delta_scale.py)

The base model, if it is given, is one more member of the sum, with the share 1 - gamma. Sums are in a dtype twice as wide as
the experts' and rounded once: equal experts give themselves, bit for bit. Experts are read one block of rows of one tensor at
a time; on a CPU, 16-bit experts are summed where they are mapped (weighted_sums.py).
Shape suffixes: L layers, N experts (the shared one first), n some members, R routed, M members (the experts, then the base
model if there is one), B elements of a block, X rows or columns of a tensor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from xft_core.errors import CheckpointError
from xft_core.families import Family
from xft_core.mixing.low_rank import Changes
from xft_core.mixing.weighted_sums import ExpertRows
from xft_core.models.config import dense_config_of, num_layers_of, transformers_config, upcycle_config_of
from xft_core.models.discovery import family_of
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.models.upcycled import HOLDERS, check_tensors

BLOCK_ELEMENTS = 2**18  # of all experts, processed at once on a CPU: 1 MiB in fp32, which fits a core's cache
ACCELERATOR_BLOCK_ELEMENTS = 2**25  # the same elsewhere: 128 MiB in fp32


class MixtureReader:
    """The FFN tensors of an upcycled checkpoint, expert by expert, under their dense names. A context manager.

    Args:
        directory: the upcycled model.
        base: the dense model that it was upcycled from, if it is a member.

    Raises CheckpointError for a base of another family.
    """

    def __init__(self, directory: Path, base: Path | None = None) -> None:
        self.upcycle = upcycle_config_of(directory)
        self.reader = CheckpointReader(directory)
        self.dense_config = dense_config_of(self.reader)
        config = transformers_config(self.dense_config)
        self.family: Family = family_of(config)
        self.num_layers = num_layers_of(config)
        check_tensors(self.reader, self.dense_config, self.upcycle)
        self.base = CheckpointReader(base) if base else None
        if self.base and (found := dense_config_of(self.base)["model_type"]) != self.dense_config["model_type"]:
            raise CheckpointError(
                f"{str(base)!r} is of family {found}, {str(directory)!r} of {self.dense_config['model_type']}: give the dense "
                "model that the experts come from as base.")

    def __enter__(self) -> "MixtureReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reader.__exit__(kind, error, trace)
        if self.base:
            self.base.__exit__(kind, error, trace)

    @property
    def num_members(self) -> int:
        """M: the experts, and the base model if there is one."""
        return self.num_experts + int(self.base is not None)

    @property
    def num_experts(self) -> int:
        """N, the shared expert included."""
        return self.upcycle.num_experts

    def expert_tensors(self, layer: int) -> Iterator["ExpertTensor"]:
        """The tensors of one layer's FFN, in the dense checkpoint's names."""
        if self.upcycle.expert_rank is not None:
            yield from self.low_rank_tensors(layer)
            return
        modules: dict[str, int] = {}  # gate, up, down: their numbers
        mlp, block = self.family.mlp_name(layer), self.family.block_name(layer)
        stored_once = f"{mlp}.{self.family.down}.weight" in self.reader
        bias_name = f"{mlp}.{self.family.down}.bias" if stored_once else f"{block}.experts.down_proj_bias"
        for stacked, sources in self.family.expert_sources(bias_name in self.reader).items():
            for number, source in enumerate(sources):
                name = f"{mlp}.{source}"
                module = modules.setdefault(source.rpartition(".")[0], len(modules))
                if stored_once:
                    yield ExpertTensor(self, name, [name], self.reader.shape(name), None, module)
                    continue
                stack = f"{block}.experts.{stacked}"
                _, num_rows, *row = self.reader.shape(stack)
                num_rows //= len(sources)
                shared = [f"{block}.shared_expert.{source}"] if self.upcycle.shared_expert else []
                scales = self.upcycle.down_scales if stacked == "down_proj" else (1.0, 1.0)
                yield ExpertTensor(self, name, [*shared, stack], [num_rows, *row], number * num_rows, module, scales)

    def base_tensor(self, name: str, shape: list[int]) -> torch.Tensor:
        """A tensor of the base model, by its dense name. Raises CheckpointError if it is missing or has another shape."""
        assert self.base is not None
        found = self.base.shape(name) if name in self.base else None
        if found != shape:
            raise CheckpointError(
                f"{name!r} is {shape} in {str(self.reader.directory)!r} and {found or 'missing'} in "
                f"{str(self.base.directory)!r}: give the dense model that the experts come from as base.")
        return self.base.get(name)

    def low_rank_tensors(self, layer: int) -> Iterator["LowRankTensor"]:
        """The same for low-rank experts."""
        mlp, block = self.family.mlp_name(layer), self.family.block_name(layer)
        holders = [f"{mlp}.", *(f"{block}.{holder}" for holder in HOLDERS)]
        holder = next(holder for holder in holders if f"{holder}{self.family.down}.weight" in self.reader)
        for kind in ("weight", "bias"):
            for module, layer_name in enumerate((*self.family.up, self.family.down)):
                source = f"{layer_name}.{kind}"
                if f"{holder}{source}" in self.reader:
                    changes = Changes(self.reader, block, source, self.upcycle)
                    yield LowRankTensor(self, f"{mlp}.{source}", holder + source, changes, module)

    def mixed(
        self, tensor: "ExpertTensor", weight: "torch.Tensor | NeuronShares", dtype: torch.dtype, device: torch.device,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """sum_i weight_i W_i for fp64 weights (N or M of them, or some for each neuron), in ``dtype`` on ``device``, as
        ``(rows, block of these rows)``."""
        if isinstance(weight, NeuronShares):
            yield from self._mixed_by_neuron(tensor, weight, dtype, device)
            return
        if isinstance(tensor, LowRankTensor):
            yield slice(0, tensor.shape[0]), tensor.mixed(weight, device).to(dtype)
            return
        with_base = len(weight) > self.num_experts and bool(weight[-1])
        weight_M = weight if with_base else weight[:self.num_experts]
        rows = tensor.rows() if device.type == "cpu" and dtype == tensor.dtype and not with_base else None
        if rows:
            yield from rows.weighted_sums(weight_M)
            return
        stacks = tensor.members() if with_base else tensor.stacks()
        for block, sum_B in weighted_sums(stacks, weight_M, _wide(tensor.dtype), device):
            yield block, sum_B.view(-1, *tensor.shape[1:]).to(dtype)

    def _mixed_by_neuron(
        self, tensor: "ExpertTensor", shares: "NeuronShares", dtype: torch.dtype, device: torch.device,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        wide = _wide(tensor.dtype)
        with_base = shares.weight_XM.shape[1] > self.num_experts
        stacks = tensor.members() if with_base else tensor.stacks()
        weight_MX = shares.weight_XM.T.to(device, wide)
        for rows, experts_MB in _blocks(stacks, wide, device):
            experts = experts_MB.view(len(experts_MB), rows.stop - rows.start, -1)
            experts.mul_(weight_MX[:, rows, None] if shares.axis == 0 else weight_MX[:, None])
            yield rows, experts.sum(0).view(-1, *tensor.shape[1:]).to(dtype)

    def gradient(self, tensor: "ExpertTensor", gradient: torch.Tensor, num_members: int | None = None) -> torch.Tensor:
        """<dL/dW, W_i - W_0> for every member, fp64, shape M, on the gradient's device: dL/dc_i up to a term that is the
        same for all i. ``num_members``: N if the base model is not a member, else all."""
        if isinstance(tensor, LowRankTensor):
            return tensor.gradient(gradient, with_base=num_members != self.num_experts)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        stacks = tensor.stacks() if num_members == self.num_experts else tensor.members()
        product_M = torch.zeros(sum(map(len, stacks)), dtype=torch.float64, device=gradient.device)
        for rows, experts_MB in _blocks(stacks, wide, gradient.device):
            experts_MB[1:] -= experts_MB[0]
            product_M[1:] += torch.mv(experts_MB[1:], gradient[rows].flatten().to(wide))
        return product_M

    def gram(self, tensor: "ExpertTensor") -> torch.Tensor:
        """<W_i, W_j> of all members of a tensor, fp64, shape M,M."""
        product_MM = torch.zeros(self.num_members, self.num_members, dtype=torch.float64)
        for _, members_MB in _blocks(tensor.members(), torch.float64, torch.device("cpu")):
            product_MM += members_MB @ members_MB.T
        return product_MM

    def neuron_gradient(
        self, tensor: "ExpertTensor", gradient: torch.Tensor, axis: int, num_members: int | None = None,
    ) -> torch.Tensor:
        """The same for every single row (axis 0) or column (axis 1) of the tensor, fp64, shape X,M."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        stacks = tensor.stacks() if num_members == self.num_experts else tensor.members()
        product_MX = torch.zeros(sum(map(len, stacks)), tensor.shape[axis], dtype=torch.float64, device=gradient.device)
        for rows, experts_MB in _blocks(stacks, wide, gradient.device):
            experts_MB[1:] -= experts_MB[0]
            experts_MB[0] = 0
            product = experts_MB.mul_(gradient[rows].flatten().to(wide)).view(len(experts_MB), rows.stop - rows.start, -1)
            if axis == 0:
                product_MX[:, rows] = product.sum(2).double()
            else:
                product_MX += product.sum(1)
        return product_MX.T


@dataclass(frozen=True)
class NeuronShares:
    """Shares of a tensor's members that differ between its rows (axis 0) or its columns (axis 1): ``weight_XM``, fp64."""

    axis: int
    weight_XM: torch.Tensor


class ExpertTensor:
    """One dense FFN tensor of one layer, for any expert: its ``name``, ``shape`` and ``dtype`` are the dense model's."""

    def __init__(
        self, mixture: MixtureReader, name: str, stored: list[str], shape: list[int], first_row: int | None, module: int,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.module_number = module  # number of the linear layer within the FFN: its weight and bias share it
        self.name, self.shape, self.dtype = name, shape, mixture.reader.dtype(stored[-1])
        self._mixture, self._stored, self._first_row = mixture, stored, first_row
        self._scales = scales  # factors that the shared expert's and the others' are stored with (UpcycleConfig.down_scales)

    @property
    def neuron_axis(self) -> int | None:
        """The axis along which the tensor's parts belong to the FFN's neurons; None if they belong to no neuron (the bias of
        the down projection)."""
        is_weight, transposed = len(self.shape) == 2, int(self._mixture.family.transposed)
        if not self.name.rpartition(".")[0].endswith(f".{self._mixture.family.down}"):
            return transposed if is_weight else 0
        return 1 - transposed if is_weight else None

    @property
    def num_neurons(self) -> int:
        """F: the neurons of the FFN."""
        down = f".{self._mixture.family.down}.weight"
        tensor = next(other for other in self._mixture.expert_tensors(0) if other.name.endswith(down))
        return tensor.shape[1 - int(self._mixture.family.transposed)]

    def members(self) -> list[torch.Tensor]:
        """Like ``stacks``, with the base model's tensor last if there is a base model: M tensors in total."""
        if self._mixture.base is None:
            return self.stacks()
        return [*self.stacks(), self._mixture.base_tensor(self.name, self.shape)[None]]

    def stacks(self) -> list[torch.Tensor]:
        """Views of the mapped checkpoint that together hold the tensor of every expert, the shared one first: shapes n,...
        Tensors that are stored with a factor are copies in a wider dtype, without it."""
        *shared, last = map(self._mixture.reader.get, self._stored)
        if self._first_row is None:
            return [last.expand(self._mixture.num_experts, *last.shape)]
        stacks = [single[None] for single in shared] + [last[:, self._first_row:self._first_row + self.shape[0]]]
        if self._scales == (1.0, 1.0):
            return stacks
        return [stack.to(_wide(self.dtype)) / scale for stack, scale in zip(stacks, self._scales, strict=True)]

    def rows(self) -> ExpertRows | None:
        """All experts as rows of one table, if they have 16 bits, are in one shard and are stored without a factor."""
        if self._scales != (1.0, 1.0):
            return None
        reader, shards, starts = self._mixture.reader, [], []
        for name, stack in zip(self._stored, self.stacks(), strict=True):
            shard, start = reader.place(name)
            shards.append(shard)
            before = reader.get(name).storage_offset()
            starts += [start + (single.storage_offset() - before) * self.dtype.itemsize for single in stack]
        in_one = all(shard is shards[0] for shard in shards) and {reader.dtype(name) for name in self._stored} == {self.dtype}
        if not in_one or self.dtype.itemsize != 2 or any(start % 2 for start in starts):
            return None
        return ExpertRows(shards[0], starts, self.shape, self.dtype)

    def of_expert(self, expert: int) -> torch.Tensor:
        """The tensor of expert ``expert``; a shared expert is number 0."""
        return [single for stack in self.stacks() for single in stack][expert].to(self.dtype)


class LowRankTensor(ExpertTensor):
    """The same for low-rank experts: ``changes`` to ``stored_shared``, the tensor that they share. No stack is stored:
    ``stacks`` and ``of_expert`` compute their result when they are called."""

    def __init__(self, mixture: MixtureReader, name: str, stored_shared: str, changes: Changes, module: int) -> None:
        super().__init__(mixture, name, [stored_shared], mixture.reader.shape(stored_shared), None, module)
        self.stored_shared, self.changes = stored_shared, changes

    def mixed(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        """sum_i weight_i W_i of the experts, or of all members, before it is rounded."""
        wide = _wide(self.dtype)
        weight_N = weight[:self._mixture.num_experts]
        shared = self._mixture.reader.get(self.stored_shared).to(device, wide)
        total = (shared * float(weight_N.sum())).add_(self.changes.mixed(weight_N, wide, device).view(shared.shape))
        if len(weight) > len(weight_N) and bool(weight[-1]):
            total += self._mixture.base_tensor(self.name, self.shape).to(device, wide) * float(weight[-1])
        return total

    def gradient(self, gradient: torch.Tensor, with_base: bool) -> torch.Tensor:
        """<dL/dW, W_i - W_s> for every expert, fp64, N, on the gradient's device; ``with_base``: also for the base model, if
        there is one."""
        found_N = self.changes.gradient(gradient)
        if not with_base or self._mixture.base is None:
            return found_N
        wide = torch.promote_types(gradient.dtype, torch.float32)
        shared, base = self._mixture.reader.get(self.stored_shared), self._mixture.base_tensor(self.name, self.shape)
        change = base.to(gradient.device, wide) - shared.to(gradient.device, wide)
        return torch.cat([found_N, (gradient.to(wide) * change).sum(dtype=torch.float64)[None]])

    def stacks(self) -> list[torch.Tensor]:
        """See ExpertTensor."""
        return [self.of_expert(expert)[None] for expert in range(self._mixture.num_experts)]

    def rows(self) -> None:
        """See ExpertTensor: there are none."""

    def of_expert(self, expert: int) -> torch.Tensor:
        """See ExpertTensor."""
        share_N = torch.eye(self._mixture.num_experts, dtype=torch.float64)[expert]
        return self.mixed(share_N, torch.device("cpu")).to(self.dtype)


def mixing_weights(alpha_LR: torch.Tensor, shared_weight_L: torch.Tensor | None) -> torch.Tensor:
    """The share of every expert, shape L,N, rows summing to one: (lambda, (1 - lambda) softmax(alpha)); without a
    shared expert, softmax(alpha). If alpha is L,G,R, for groups of a layer, the shares are L,G,N."""
    routed_LR = torch.softmax(alpha_LR, dim=-1)
    if shared_weight_L is None:
        return routed_LR
    shared_L1 = shared_weight_L.reshape(-1, *[1] * (alpha_LR.dim() - 1)).expand(*alpha_LR.shape[:-1], 1)
    return torch.cat([shared_L1, (1 - shared_L1) * routed_LR], dim=-1)


def weighted_sums(
    stacks: list[torch.Tensor], weight_M: torch.Tensor, dtype: torch.dtype, device: torch.device,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """sum_i weight_i W_i over the tensors in ``stacks``, in ``dtype`` on ``device``, as ``(rows, their elements)``. Stacks
    without a nonzero weight are not read: a single weight of one gives its tensor bit for bit."""
    used = [
        (stack, weight_n) for stack, weight_n in zip(stacks, weight_M.split([len(stack) for stack in stacks]), strict=True)
        if weight_n.any()]
    weight_n = torch.cat([weight_n for _, weight_n in used]).to(device, dtype)
    for rows, members_nB in _blocks([stack for stack, _ in used], dtype, device):
        yield rows, torch.mv(members_nB.t(), weight_n)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of ``dtype`` are summed."""
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _blocks(
    stacks: list[torch.Tensor], dtype: torch.dtype, device: torch.device,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """``(rows, their elements in every expert)``, the latter on ``device`` in ``dtype``, of shape N,B and overwritten by
    the next: all experts are read while a block is in the cache."""
    num_experts, (num_rows, *row) = sum(map(len, stacks)), stacks[0].shape[1:]
    elements = BLOCK_ELEMENTS if device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    size = max(1, elements // (num_experts * math.prod(row)))
    buffer_NB = torch.empty(num_experts, min(size, num_rows) * math.prod(row), dtype=dtype, device=device)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        block_NB = buffer_NB[:, :(rows.stop - start) * math.prod(row)]
        for part_nB, stack in zip(block_NB.split([len(stack) for stack in stacks]), stacks, strict=True):
            part_nB.copy_(stack[:, rows].flatten(1).to(device))
        yield rows, block_NB
