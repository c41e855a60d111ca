"""Parameters and floating-point work of a model, from its config.json. If the weights are next to it, their headers determine
dtype and tying.

Only matrices are counted: biases, norms and positions, a few tenths of a percent, are left out.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES
from xft_core.files.locate import is_hub_name, local_path
from xft_core.files.parsing import parse_json
from xft_core.models.safetensors_index import EMBEDDINGS, HEADS, read_header, weight_files
from xft_core.recipe.sections import UpcycleConfig
from xft_core.recipe.sections.upcycle import ASSIGNED

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense decoder: D hidden, F FFN, L layers, V vocabulary; heads times head size for queries and for keys."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    vocabulary: int
    query_size: int
    key_size: int
    gated: bool
    tied: bool
    plain_head: bool = True
    packs: bool = True
    stored_bytes: int = 2
    fused: bool = False  # gate and up are one matrix
    beside: int = 0  # parameters outside the decoder: the vision tower and projector of a model that reads pictures

    @property
    def ffn(self) -> int:
        """Parameters of one layer's FFN."""
        return self.ffn_matrices * self.hidden_size * self.ffn_size

    @property
    def ffn_matrices(self) -> int:
        """Matrices of an FFN: gate, up and down, or only up and down."""
        return 3 if self.gated else 2

    @property
    def attention(self) -> int:
        """Parameters of one layer's attention: queries and output, keys and values."""
        return 2 * self.hidden_size * (self.query_size + self.key_size)

    @property
    def embeddings(self) -> int:
        """Parameters of embeddings and head."""
        return self.vocabulary * self.hidden_size * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Parameters of the dense model."""
        return self.embeddings + self.num_layers * (self.attention + self.ffn) + self.beside

    def router(self, upcycle: UpcycleConfig) -> int:
        """Parameters of one layer's router."""
        if upcycle.mode == "fusion":
            return 0
        routed = upcycle.num_routed
        output = 0 if upcycle.is_stock else routed
        learned = 0 if upcycle.router in ASSIGNED else routed * (self.hidden_size * (2 if upcycle.router_noise else 1) + output)
        has_gate = upcycle.normalization == "qwen2_moe" or (upcycle.shared_gate == "token" and upcycle.shared_expert)
        gate = self.hidden_size if has_gate else 0
        return learned + gate + (upcycle.groups or 0) * self.hidden_size

    def low_rank(self, upcycle: UpcycleConfig) -> int:
        """Parameters that the low-rank experts and groups of one layer add to the shared weights: A and B of every matrix. A
        gate fused with up shares its A."""
        sizes = self.ffn_matrices * (self.hidden_size + self.ffn_size) - (self.hidden_size if self.fused else 0)
        return low_rank_columns(upcycle) * sizes

    def adapters(self, rank: int, of_ffn: bool) -> int:
        """Parameters of adapters of a rank: A and B of all attention matrices and, with ``of_ffn``, of the FFN matrices."""
        sizes = 4 * self.hidden_size + 2 * (self.query_size + self.key_size)
        if of_ffn:
            sizes += self.ffn_matrices * (self.hidden_size + self.ffn_size) - (self.hidden_size if self.fused else 0)
        return self.num_layers * rank * sizes

    def moe_parameters(self, upcycle: UpcycleConfig) -> int:
        """Parameters of the upcycled model, including every expert."""
        more = self.router(upcycle)
        more += self.low_rank(upcycle) if upcycle.expert_rank is not None else (upcycle.num_experts - 1) * self.ffn
        return self.parameters + self.num_layers * more

    def largest_matrix(self, upcycle: UpcycleConfig | None) -> int:
        """Parameters of the largest single tensor. The routed experts of a layer are stacked, with gate and up together."""
        candidates = [self.vocabulary * self.hidden_size, self.hidden_size * self.ffn_size]
        if upcycle and upcycle.expert_rank is not None:
            rows = self.ffn_size * (2 if self.fused else 1)
            columns = max(upcycle.num_routed * upcycle.expert_rank, (upcycle.groups or 0) * upcycle.group_rank)
            candidates += [self.hidden_size * rows, columns * max(self.hidden_size, rows)]
        elif upcycle:
            candidates.append(upcycle.num_routed * (self.ffn_matrices - 1) * self.hidden_size * self.ffn_size)
        return max(candidates)

    def forward_flops(self, sequence: float, upcycle: UpcycleConfig | None = None, training: bool = False) -> float:
        """Floating-point operations of a forward pass, per token of a sequence of ``sequence`` tokens (with attention over the
        full sequence, as kernels with a mask compute it). ``training``: some routers then use fewer experts."""
        if upcycle and upcycle.expert_rank is not None:
            ffn = self.ffn + self._low_rank_products(upcycle, training) + self.router(upcycle)
        else:
            ffn = self.ffn * (upcycle.active_experts(training) if upcycle else 1) + (self.router(upcycle) if upcycle else 0)
        layer = 2 * (self.attention + ffn) + 4 * sequence * self.query_size
        return self.num_layers * layer + 2 * self.vocabulary * self.hidden_size

    def _low_rank_products(self, upcycle: UpcycleConfig, training: bool) -> float:
        """Products of low-rank experts per token: D times all columns, and F times the columns of the token's slots."""
        all_columns = self.hidden_size * (self.ffn_matrices - int(self.fused))
        return low_rank_columns(upcycle) * all_columns + active_columns(upcycle, training) * self.ffn_matrices * self.ffn_size


def low_rank_columns(upcycle: UpcycleConfig) -> int:
    """The sum of the ranks of all experts and groups."""
    assert upcycle.expert_rank is not None
    return upcycle.num_routed * upcycle.expert_rank + (upcycle.groups or 0) * upcycle.group_rank


def active_slots(upcycle: UpcycleConfig) -> int:
    """Hidden layers that a token mixes with low-rank experts: those of experts, of their groups, and of the shared weights."""
    routed, shared = upcycle.num_experts_per_tok - int(upcycle.shared_expert), int(upcycle.shared_expert)
    return routed + shared if upcycle.groups is None else upcycle.groups_per_tok * (routed + shared) + shared


def active_columns(upcycle: UpcycleConfig, training: bool) -> float:
    """The sum of the ranks that a token's slots add to the shared weights. Slots of weight 0 are also computed."""
    assert upcycle.expert_rank is not None
    all_active = not training and upcycle.router in ("random", "by_example")
    slots = upcycle.num_experts if all_active else upcycle.num_experts_per_tok
    routed, shared = slots - int(upcycle.shared_expert), int(upcycle.shared_expert)
    if upcycle.groups is None:
        return routed * upcycle.expert_rank
    return upcycle.groups_per_tok * (routed * (upcycle.expert_rank + upcycle.group_rank) + shared * upcycle.group_rank)


def shape_of_config(content: dict[str, Any], where: str = "config.json") -> Shape:
    """The shape described by a dense model's config.json. Raises CheckpointError for a family that cannot be upcycled, and
    for sizes that are missing or not numbers."""
    if "upcycle" in content:
        raise CheckpointError(f"{where} belongs to an upcycled model. Plan with the dense model instead.")
    if content.get("model_type") not in FAMILIES:
        return _shape_of_modules(content)
    family = FAMILIES[content["model_type"]]
    try:
        hidden, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
        head_size = int(content.get("head_dim") or family.head_size or hidden // heads)
        return Shape(
            hidden_size=hidden, ffn_size=int(content["intermediate_size"]), num_layers=int(content["num_hidden_layers"]),
            vocabulary=int(content["vocab_size"]), query_size=heads * head_size,
            key_size=int(content.get("num_key_value_heads") or heads) * head_size,
            gated=family.gated, fused=family.gated and len(family.up) == 1, plain_head=family.plain_head,
            tied=bool(content.get("tie_word_embeddings", family.tied)),
            stored_bytes=_bytes(content))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{where} has no usable sizes to plan with: {type(error).__name__}: {error}") from None


def _shape_of_modules(content: dict[str, Any]) -> Shape:
    """The shape of a model whose family is not in the table, read from its modules, because its config.json may use any names
    for the sizes. Only this case loads torch."""
    from xft_core.models.config import decoder_layers, transformers_config
    from xft_core.models.discovery import family_of
    from xft_core.models.stored_form import shape_only

    config = transformers_config({**content, "model_type": str(content.get("model_type"))})
    family, model = family_of(config), shape_only(config)
    layer = decoder_layers(model, family)[0]
    down = layer.get_submodule(family.mlp).get_submodule(family.down).weight.shape
    hidden, ffn_size = (down[1], down[0]) if family.transposed else (down[0], down[1])
    matrices = (3 if family.gated else 2) * hidden * ffn_size
    attention = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2) - matrices
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    query_size = heads * int(getattr(text, "head_dim", None) or hidden // heads)
    beside = 0
    if family.reads_pictures:
        language = {id(item) for item in model.get_submodule(family.layers.rpartition(".")[0]).parameters()}
        language |= {id(item) for item in model.get_output_embeddings().parameters()}
        beside = sum(item.numel() for item in model.parameters() if id(item) not in language)
    return Shape(
        hidden_size=hidden, ffn_size=ffn_size, num_layers=int(text.num_hidden_layers), vocabulary=int(text.vocab_size),
        query_size=query_size, key_size=max(0, attention // (2 * hidden) - query_size), gated=family.gated,
        tied=bool(config.tie_word_embeddings), plain_head=family.plain_head, packs=family.packs,
        stored_bytes=_bytes(content), beside=beside)


def _bytes(content: dict[str, Any]) -> int:
    return BYTES.get(str(content.get("dtype") or content.get("torch_dtype") or "float32"), 4)


def find_config(name: str) -> Path | None:
    """The config.json of a model directory, of demo:model, or of a Hub name (``owner/model@revision``) in the Hub's cache;
    None for a Hub name that is not in the cache. Nothing is downloaded."""
    path = local_path(name, CheckpointError)
    if path.is_file():
        return path
    if (path / "config.json").is_file():
        return path / "config.json"
    if not is_hub_name(name):
        raise CheckpointError(f"There is no config.json in {name!r}. Give a model directory or a Hub name (owner/model).")
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def read_shape(path: Path) -> Shape:
    """The shape in a config.json. Raises CheckpointError if it cannot be read."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} contains a {type(content).__name__} instead of a model's fields.")
    return _as_stored(shape_of_config(content, str(path)), path.parent)


def _as_stored(shape: Shape, directory: Path) -> Shape:
    """The shape with the bytes per parameter of the weights in ``directory``, and with a separate head if one is stored in
    addition to the embedding (an upper bound: a tied one may be stored twice)."""
    try:
        headers = [read_header(directory / name)[0] for name in weight_files(directory)]
    except CheckpointError:
        return shape  # no weights, or unusable ones: the stage that reads them reports it
    tensors = {name: tensor for header in headers for name, tensor in header.items()}
    sizes = Counter[int]()
    for tensor in tensors.values():
        sizes[STORED_BYTES.get(tensor["dtype"], shape.stored_bytes)] += math.prod(tensor["shape"])
    stored = [any(name.endswith(endings) for name in tensors) for endings in (HEADS, EMBEDDINGS)]
    return replace(shape, stored_bytes=sizes.most_common(1)[0][0] if sizes else shape.stored_bytes,
                   tied=shape.tied and not all(stored))
