"""What this machine does in a second, measured in about two seconds. The only part of planning that needs torch."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from xft_core.planning.plan import Rates
from xft_core.planning.shape import Shape

SECONDS = 0.4  # for each of the measurements
COPIED = 64 * 2**20


def measured_rates(shape: Shape, tokens: int, precision: str, store: Path) -> Rates:
    """The rate of a plain matrix product of the model's own size (``tokens`` by D by F, at most 4096 tokens) in the arithmetic
    of ``precision``, of copying 64 MiB in memory, and of writing 64 MiB beside ``store``.

    Of each the best of several counts. No training step exceeds the rate of a product alone: times made with it are lower
    bounds.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    rows = min(tokens, 4096)
    left = torch.randn(rows, shape.hidden_size, device=device).to(dtype)
    right = torch.randn(shape.hidden_size, shape.ffn_size, device=device).to(dtype)
    block, copy = torch.zeros(2, COPIED, dtype=torch.uint8, device=device)

    def synchronized(work: Callable[[], object]) -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    products = _per_second(lambda: synchronized(lambda: left @ right))
    copies = _per_second(lambda: synchronized(lambda: copy.copy_(block)))
    return Rates(
        flops=products * 2.0 * rows * shape.hidden_size * shape.ffn_size, bandwidth=copies * 2.0 * COPIED, disk=_disk(store),
        accelerated=device.type == "cuda")


def _per_second(work: Callable[[], None]) -> float:
    work()
    started, best = time.perf_counter(), float("inf")
    while (begun := time.perf_counter()) - started < SECONDS:
        work()
        best = min(best, time.perf_counter() - begun)
    return 1 / best


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
