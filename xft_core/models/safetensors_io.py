"""Read and write checkpoints tensor by tensor, so that memory stays at a few tensors whatever the model's size.

Reading is lazy (safetensors, memory-mapped). Writing streams: shards are planned from shapes first, then every tensor
is written to its place part by part, several tensors at a time, and the Hugging Face index is written last.
"""

import json
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from xft_core.errors import CheckpointError
from xft_core.files.parsing import parse_json
from xft_core.models.safetensors_index import INDEX_NAME, SINGLE_NAME, read_header, read_index, weight_files

MAX_SHARD_BYTES = 5_000_000_000
WRITE_BYTES = 2**18  # at once: the kernel copies larger blocks from mapped files, and smaller ones from anywhere, more slowly

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


class CheckpointReader:
    """The tensors of a model directory by name, whatever the shards. Use it as a context manager.

    Raises CheckpointError, before any tensor is read, if a shard is missing, truncated or not safetensors, or if two shards
    hold the same tensor.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, Any] = {name: _open_shard(directory / name) for name in weight_files(directory)}
        self._mapped: dict[str, tuple[torch.Tensor, dict[str, int]]] = {}
        # Name to shard and name in it. As in transformers, all tensors in the shards count, even those the index leaves out.
        self._place_of: dict[str, tuple[str, str]] = {}
        for shard, handle in self._open.items():
            for name in handle.keys():
                if name in self._place_of:
                    raise CheckpointError(
                        f"{str(directory)!r} holds {name!r} twice, in {self._place_of[name][0]} and in {shard}. Programs "
                        "differ in which one they read: save the model again.")
                self._place_of[name] = shard, name
        self._check_index()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._open.values():
            handle.__exit__(kind, error, trace)

    def __contains__(self, name: str) -> bool:
        return name in self._place_of

    def names(self) -> list[str]:
        """Every tensor's name, sorted."""
        return sorted(self._place_of)

    def name_in_file(self, name: str) -> str:
        """A tensor's name in the files, whatever it was renamed to."""
        return self._place_of[name][1]

    def rename(self, names: dict[str, str]) -> None:
        """Use other names for tensors from now on. ``names``: old to new names."""
        renamed = {names.get(name, name): place for name, place in self._place_of.items()}
        assert len(renamed) == len(self._place_of), "two tensors of one name"
        self._place_of = renamed

    def get(self, name: str) -> torch.Tensor:
        """One tensor, a view of the mapped file. Raises CheckpointError if there is none of that name."""
        handle, stored = self._handle(name)
        return handle.get_tensor(stored)

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, without reading it."""
        handle, stored = self._handle(name)
        return list(handle.get_slice(stored).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without reading it."""
        handle, stored = self._handle(name)
        found = handle.get_slice(stored).get_dtype()
        dtype = next((dtype for dtype, text in _DTYPE_NAMES.items() if text == found), None)
        if dtype is None:
            raise CheckpointError(f"{name!r} in {str(self.directory)!r} has dtype {found}: convert it to BF16 or F32 first.")
        return dtype

    def place(self, name: str) -> tuple[torch.Tensor, int]:
        """The mapped bytes of the shard that holds a tensor, and the tensor's offset in them: for work across tensors."""
        shard, stored = self._place_of[name]
        if shard not in self._mapped:
            path = self.directory / shard
            header, data = read_header(path)
            content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            starts = {item: data + place["data_offsets"][0] for item, place in header.items()}
            self._mapped.setdefault(shard, (content, starts))  # the first thread wins: one object per shard
        content, starts = self._mapped[shard]
        return content, starts[stored]

    def copy_plan(self, name: str, new_name: str | None = None) -> "TensorPlan":
        """A plan to write a tensor unchanged."""
        return TensorPlan(new_name or name, self.shape(name), self.dtype(name), lambda: [self.get(name)])

    def _handle(self, name: str) -> tuple[Any, str]:
        if name not in self._place_of:
            raise CheckpointError(f"{str(self.directory)!r} has no tensor {name!r}: it is not the checkpoint of its config.")
        shard, stored = self._place_of[name]
        return self._open[shard], stored

    def _check_index(self) -> None:
        path = self.directory / INDEX_NAME
        for name, shard in (read_index(path) if path.is_file() else {}).items():
            if name not in self._place_of:
                raise CheckpointError(f"{str(self.directory)!r} lacks tensor {name!r}, which its index lists.")
            if self._place_of[name][0] != shard:
                raise CheckpointError(
                    f"Tensor {name!r} is in {self._place_of[name][0]}, not in {shard} as {str(path)!r} says: the index does "
                    "not belong to these shards.")


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written. ``parts``: creates its parts when they are needed, tensors of any shapes with consecutive
    elements; it may be called in any thread."""

    name: str
    shape: list[int]
    dtype: torch.dtype
    parts: Callable[[], Iterable[torch.Tensor]]

    @property
    def num_bytes(self) -> int:
        """Size on disk in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def dtype_that_holds(plans: Iterable[TensorPlan]) -> str:
    """The dtype for a config.json: the one that holds every tensor without rounding. transformers loads the entire model in
    it."""
    return str(reduce(torch.promote_types, {plan.dtype for plan in plans})).removeprefix("torch.")


def write_checkpoint(directory: Path, plans: Iterable[TensorPlan], max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Write tensors into Hugging Face shards, as many at a time as torch has threads, with one part of each in memory.

    Returns the bytes of all tensors.
    """
    shards: list[list[TensorPlan]] = [[]]
    for plan in plans:
        if shards[-1] and sum(item.num_bytes for item in shards[-1]) + plan.num_bytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(plan)
    total = sum(plan.num_bytes for shard in shards for plan in shard)
    if len(shards) == 1:
        _write_shards({directory / SINGLE_NAME: shards[0]})
        return total
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    _write_shards({directory / name: shard for name, shard in zip(names, shards, strict=True)})
    weight_map = {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
    return total


def read_config(directory: Path) -> dict[str, Any]:
    """A model directory's config.json. Raises CheckpointError if it is missing or not JSON."""
    path = directory / "config.json"
    try:
        config = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{str(directory)!r} is not a model directory: it has no config.json.") from None
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{str(path)!r} has no model_type: it is not a transformers configuration.")
    return config


def _write_shards(shards: dict[Path, list[TensorPlan]]) -> None:
    """Write shards. Each worker writes one tensor at a time with one thread: parts are too small for several threads."""
    places = [(path, *place) for path, plans in shards.items() for place in _write_header(path, plans)]
    num_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(_write_tensor, *zip(*places, strict=True)):
                pass
    finally:
        torch.set_num_threads(num_threads)


def _write_header(path: Path, plans: list[TensorPlan]) -> list[tuple[TensorPlan, int]]:
    """Write a shard's header. Returns every tensor's plan and its offset in the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {
            "dtype": _DTYPE_NAMES[plan.dtype], "shape": plan.shape, "data_offsets": [offset, offset + plan.num_bytes]}
        offset += plan.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = path.write_bytes(struct.pack("<Q", len(text)) + text)
    return [(plan, start + header[plan.name]["data_offsets"][0]) for plan in plans]


def _write_tensor(path: Path, plan: TensorPlan, start: int) -> None:
    with path.open("r+b", buffering=WRITE_BYTES // 2) as stream:
        stream.seek(start)
        for part in plan.parts():
            assert part.dtype == plan.dtype, f"{plan.name} is not as planned"
            data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            for first in range(0, len(data), WRITE_BYTES):
                stream.write(data[first:first + WRITE_BYTES])
        assert stream.tell() == start + plan.num_bytes, f"{plan.name} is not as planned"


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except FileNotFoundError:
        raise CheckpointError(f"Shard {str(path)!r} is missing.") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} is truncated or not safetensors: {error}") from None
