"""Where each model family keeps its feed-forward network (FFN). Supporting another family is one more row.

A row says where the decoder layers are, what the FFN's linear layers are called, and whether the first of them is
gated: y = down(act(gate(x)) * up(x)) when gated, y = down(act(up(x))) when not. Sizes, biases, the activation and all
else come from the checkpoint's own configuration and from the family's own transformers class.
"""

from dataclasses import dataclass

from xft_core.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """One family's FFN. ``up`` names the layers into the FFN (gate before up; one name when fused or not gated).

    ``plain_head``: the logits are what the head gives; False where the family changes them afterwards (soft-capping).
    ``head_size`` and ``tied``: what the family's configuration class has for head_dim and tie_word_embeddings where a
    config.json leaves them out (None: hidden size over heads).
    """

    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    gated: bool = True
    activation: str = "act_fn"
    layers: str = "model.layers"
    mlp: str = "mlp"
    renamed: tuple[tuple[str, str], ...] = ()
    plain_head: bool = True
    head_size: int | None = None
    tied: bool = False

    def stored_name(self, name: str) -> str:
        """A tensor's name in checkpoint files, where transformers calls it otherwise in memory (``renamed``)."""
        for in_memory, in_files in self.renamed:
            if name.startswith(f"{in_memory}."):
                return in_files + name.removeprefix(in_memory)
        return name

    @property
    def up_parameter(self) -> str:
        """The stacked experts' name for the layers into the FFN, as transformers' expert kernels expect it."""
        return "gate_up_proj" if self.gated else "up_proj"

    def mlp_name(self, layer: int) -> str:
        """Full name of one decoder layer's FFN module."""
        return f"{self.layers}.{layer}.{self.mlp}"

    def expert_sources(self, has_bias: bool) -> dict[str, tuple[str, ...]]:
        """For every stacked expert parameter, the dense tensors (below the FFN) joined along their first dimension."""
        sources = {self.up_parameter: tuple(f"{name}.weight" for name in self.up), "down_proj": (f"{self.down}.weight",)}
        if has_bias:
            sources |= {
                f"{self.up_parameter}_bias": tuple(f"{name}.bias" for name in self.up),
                "down_proj_bias": (f"{self.down}.bias",)}
        return sources


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_size=128),
    "gemma2": Family(plain_head=False, head_size=256, tied=True),
    "gemma3_text": Family(plain_head=False, head_size=256, tied=True),
    "stablelm": Family(),
    "olmo2": Family(),
    "phi3": Family(up=("gate_up_proj",), activation="activation_fn"),
    "starcoder2": Family(up=("c_fc",), down="c_proj", gated=False, activation="act", tied=True),
    "gpt_neox": Family(
        up=("dense_h_to_4h",), down="dense_4h_to_h", gated=False, activation="act", layers="gpt_neox.layers",
        renamed=(("lm_head", "embed_out"),)),
}


def family_of(model_type: str) -> Family:
    """The row of a ``model_type``. Raises CheckpointError listing the known ones and how to add another."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise CheckpointError(
        f"Model family {model_type!r} is not known. Known: {', '.join(sorted(FAMILIES))}. To add a dense decoder family, "
        "add a row to FAMILIES in xft_core/families.py that names its FFN's linear layers, and a tiny model of it to "
        "tests/factories.py: the tests then check it.")
