"""Measure this machine's rates with probes in a stage's own shape, precision and threads. Needs torch.

One decoder layer of the model's size is trained for a step, and generates one token of a batch, both dense and as a
Mixture-of-Experts. A layer that would take too long gets fewer tokens. The result is the median of repeats after a warm-up.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xft_core.planning.shape import Shape, active_slots
from xft_core.planning.stage_plan import Rates
from xft_core.recipe.sections import Recipe, UpcycleConfig

SECONDS, LEAST_REPEATS = 1.5, 5  # of each probe
COPIED = 64 * 2**20
LARGEST = 1e9  # most bytes of a layer's experts, in fp32, that a probe creates
PROBE_FLOPS = 4e10  # of a forward pass: a step takes some seconds on a slow core
START = "import time; begun = time.perf_counter(); import transformers.models.llama.modeling_llama; import torch; " \
        "print(time.perf_counter() - begun)"


def measured_rates(shape: Shape, recipe: Recipe, threads: int, store: Path) -> Rates:
    """Measure the rates of training and answering (dense and MoE), of copies in memory and of files on the disk of ``store``,
    and the time that a stage takes to start. ``threads``: processor cores that a stage gets.

    If a layer of the Mixture-of-Experts has more than LARGEST bytes, its experts are not probed, and the dense rate is used.
    """
    import torch

    torch.set_num_threads(threads)
    sft, generate, moe = recipe.sft, recipe.generate, recipe.upcycle
    sequence = recipe.data.max_length
    probe = _Probe(shape, _device())
    tokens = sft.micro_batch_size * sequence
    dense, busy = probe.training(tokens, sequence, sft.precision, None)
    token = probe.decoding(generate.batch_size, generate.precision, None)
    num_ffns = moe.num_experts if moe.expert_rank is None else 1
    is_small = 4.0 * num_ffns * shape.ffn < LARGEST
    return replace(
        given_rates(dense, store), start=_start(), busy=busy, token=token,
        moe_flops=probe.training(tokens, sequence, sft.precision, moe)[0] if is_small else dense,
        moe_token=probe.decoding(generate.batch_size, generate.precision, moe) if is_small else token * moe.num_experts_per_tok)


def given_rates(flops: float, store: Path) -> Rates:
    """The rates if that of arithmetic is known: only copies in memory and files on the disk of ``store`` are measured."""
    import torch

    device = _device()
    block, copy = torch.zeros(2, COPIED, dtype=torch.uint8, device=device)
    copying, _ = _seconds(lambda: copy.copy_(block), device)
    return Rates(flops, bandwidth=2.0 * COPIED / copying, disk=_disk(store), accelerated=device.type == "cuda")


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Probe:
    """Time one layer of a shape on a device."""

    def __init__(self, shape: Shape, device: Any) -> None:
        self._shape, self._device = shape, device

    def training(self, tokens: int, sequence: int, precision: str, upcycle: UpcycleConfig | None) -> tuple[float, float]:
        """Operations per second of a layer's forward and backward pass, and the slowdown compared with an idle machine."""
        import torch

        per_token = self._layer_flops(sequence, upcycle)
        length = min(sequence, max(8, int(PROBE_FLOPS / per_token)))
        rows = max(1, min(tokens // sequence, int(PROBE_FLOPS / (per_token * length))))
        layer = self._layer(precision, upcycle)
        inputs = torch.randn(rows, length, self._shape.hidden_size, device=self._device).to(layer.dtype).requires_grad_()
        seconds, busy = _seconds(lambda: layer(inputs).sum().backward(), self._device)
        return 3 * rows * length * self._layer_flops(length, upcycle) / seconds, busy

    def decoding(self, batch: int, precision: str, upcycle: UpcycleConfig | None) -> float:
        """Seconds for one token of each of ``batch`` answers, in all layers and the head."""
        import torch

        layer = self._layer(precision, upcycle)
        inputs = torch.randn(batch, 1, self._shape.hidden_size, device=self._device).to(layer.dtype)
        head = torch.randn(self._shape.hidden_size, self._shape.vocabulary, device=self._device).to(layer.dtype)
        with torch.no_grad():
            of_layer, _ = _seconds(lambda: layer(inputs), self._device)
            of_head, _ = _seconds(lambda: inputs @ head, self._device)
        return of_layer * self._shape.num_layers + of_head

    def _layer_flops(self, sequence: int, upcycle: UpcycleConfig | None) -> float:
        head = 2 * self._shape.vocabulary * self._shape.hidden_size
        return (self._shape.forward_flops(sequence, upcycle) - head) / self._shape.num_layers

    def _layer(self, precision: str, upcycle: UpcycleConfig | None) -> Any:
        import torch
        from torch import nn
        from torch.nn import functional

        from xft_core.families import Family
        from xft_core.moe.low_rank import LowRankExperts

        shape = self._shape
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        low_rank = upcycle if upcycle and upcycle.expert_rank is not None else None
        family = Family(up=("up",), down="down", gated=shape.gated)
        routed = upcycle.num_routed if upcycle and not low_rank else 0
        active = upcycle.num_experts_per_tok - int(upcycle.shared_expert) if upcycle else 0

        class Ffn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.up = nn.Linear(shape.hidden_size, shape.ffn_size * (2 if shape.gated else 1), bias=False)
                self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)
                self.act_fn = nn.SiLU() if shape.gated else nn.GELU()

            def forward(self, hidden: Any) -> Any:
                wide = self.up(hidden)
                if not shape.gated:
                    return self.down(self.act_fn(wide))
                gate, up = wide.chunk(2, -1)
                return self.down(self.act_fn(gate) * up)

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.query, self.out = (nn.Linear(shape.hidden_size, shape.query_size, bias=False),
                                        nn.Linear(shape.query_size, shape.hidden_size, bias=False))
                self.keys = nn.Linear(shape.hidden_size, 2 * shape.key_size, bias=False)
                self.norms = nn.ModuleList(nn.RMSNorm(shape.hidden_size) for _ in range(2))
                self.shared = Ffn() if upcycle is None or upcycle.shared_expert or low_rank else None
                self.low_rank = LowRankExperts(self.shared, family, low_rank) if self.shared and low_rank else None
                for parameter in self.low_rank.parameters() if self.low_rank else ():
                    nn.init.normal_(parameter, std=0.02)
                self.experts = nn.ModuleList(Ffn() for _ in range(routed))
                self.dtype = dtype

            def forward(self, hidden: Any) -> Any:
                batch, length, _ = hidden.shape
                normed = self.norms[0](hidden)
                query = self.query(normed).view(batch, length, 1, shape.query_size).transpose(1, 2)
                key, value = self.keys(normed).view(batch, length, 2, shape.key_size).unbind(2)
                repeats = -(-shape.query_size // shape.key_size)
                key, value = (part.repeat(1, 1, repeats)[..., :shape.query_size].unsqueeze(1) for part in (key, value))
                mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
                hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, shape.query_size))
                normed = self.norms[1](hidden).reshape(batch * length, -1)
                if self.low_rank is not None and low_rank is not None:
                    slots = torch.arange(batch * length, device=hidden.device)[:, None] + torch.arange(
                        active_slots(low_rank), device=hidden.device)
                    weight = torch.full(slots.shape, 1 / slots.shape[1], device=hidden.device)
                    return hidden + self.low_rank(normed, slots % low_rank.num_routed, weight).view_as(hidden)
                result = self.shared(normed) if self.shared is not None else torch.zeros_like(normed)
                for index, expert in enumerate(self.experts):  # as evenly as possible
                    chosen = torch.arange(index, batch * length * active, routed, device=hidden.device) % (batch * length)
                    if len(chosen):
                        result = result.index_add(0, chosen, expert(normed[chosen]))
                return hidden + result.view_as(hidden)

        return Layer().to(self._device, dtype)


def _seconds(work: Callable[[], object], device: Any) -> tuple[float, float]:
    """The median time of repeats after a warm-up, and the ratio of wall time to processor time per thread (1 on an idle
    machine)."""
    import torch

    def once() -> float:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    once()
    started, processor = time.perf_counter(), time.process_time()
    times: list[float] = []
    while len(times) < LEAST_REPEATS or time.perf_counter() - started < SECONDS:
        times.append(once())
    wall = time.perf_counter() - started
    used = (time.process_time() - processor) / torch.get_num_threads()
    busy = 1.0 if device.type == "cuda" or used <= 0 else max(1.0, wall / used)
    return statistics.median(times), busy


def _start() -> float:
    """Seconds until a stage's process has loaded its libraries."""
    found = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    return float(found.stdout) if found.returncode == 0 else 0.0


def _disk(store: Path) -> float:
    place = store.absolute()
    while not place.is_dir():
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as stream:
        started = time.perf_counter()
        stream.write(bytes(COPIED))
        stream.flush()
        os.fsync(stream.fileno())
        return COPIED / (time.perf_counter() - started)
