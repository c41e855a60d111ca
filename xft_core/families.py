"""A table of model families, with one row per family that locates its feed-forward network (FFN).

A row gives the location of the decoder layers, the names of the FFN's linear layers, and whether the first of them is
gated: y = down(act(gate(x)) * up(x)) if gated, y = down(act(up(x))) if not. Sizes, biases, the activation and everything
else come from the checkpoint's own configuration and from the family's transformers class. For a family that is not in
this table, the row is derived from its modules and verified (xft_core/models/discovery/).

A model that reads pictures contains a language model of such a family, with its layers at another path
(``PICTURE_FAMILIES``).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """The FFN of one family. ``up`` names the layers into the FFN (gate before up; one name if fused or not gated).

    ``mlp``: the FFN's module in its decoder layer; empty if the linear layers are in the decoder layer itself.
    ``dropout``: the FFN's attribute (a number or a Dropout) for dropout of its output; empty if there is none.
    ``transposed``: its linear layers are Conv1D, with weights stored as input by output.
    ``adds_residual``: its forward also takes the residual, and returns the sum.
    ``plain_head``: the logits are the output of the head; False if the family changes them afterwards (soft-capping).
    ``packs``: restarting position numbers keep the examples of a sequence apart; False: each example gets its own sequence.
    ``attends_by_example``: models/packed_attention.py may compute its attention.
    ``reads_pictures``: the decoder is the language model of a model that reads pictures; each sequence is one example.
    ``head_size`` and ``tied``: the defaults of the family's configuration class for head_dim and tie_word_embeddings if a
    config.json leaves them out (None: hidden size over heads).
    """

    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    gated: bool = True
    activation: str = "act_fn"
    layers: str = "model.layers"
    mlp: str = "mlp"
    renamed: tuple[tuple[str, str], ...] = ()
    dropout: str = "residual_dropout"
    transposed: bool = False
    adds_residual: bool = False
    plain_head: bool = True
    packs: bool = True
    attends_by_example: bool = True
    reads_pictures: bool = False
    head_size: int | None = None
    tied: bool = False

    def stored_name(self, name: str) -> str:
        """A tensor's name in checkpoint files, which for ``renamed`` tensors differs from the transformers name in memory."""
        for in_memory, in_files in self.renamed:
            if name.startswith(f"{in_memory}."):
                return in_files + name.removeprefix(in_memory)
        return name

    @property
    def up_parameter(self) -> str:
        """The stacked experts' parameter name for the layers into the FFN, as transformers' expert kernels expect it."""
        return "gate_up_proj" if self.gated else "up_proj"

    @property
    def block(self) -> str:
        """The name, in its decoder layer, of the module that the Mixture-of-Experts replaces: the FFN or, if the FFN has no
        module of its own, its first linear layer."""
        return self.mlp or self.up[0]

    def mlp_name(self, layer: int) -> str:
        """Full name of one decoder layer's FFN module, or of the layer if the FFN has no module of its own."""
        return f"{self.layers}.{layer}.{self.mlp}".removesuffix(".")

    def block_name(self, layer: int) -> str:
        """Full name of one decoder layer's Mixture-of-Experts in an upcycled model."""
        return f"{self.layers}.{layer}.{self.block}"

    def within_block(self, name: str) -> tuple[str, str] | None:
        """For a tensor in a Mixture-of-Experts of an upcycled model: the full name of its FFN in the dense model, and the
        tensor's name below the block. None for any other tensor."""
        number, _, inner = name.removeprefix(f"{self.layers}.").partition(".")
        if not name.startswith(f"{self.layers}.{number}.{self.block}.") or not number.isdigit():
            return None
        return self.mlp_name(int(number)), inner.removeprefix(f"{self.block}.")

    def ffn_prefixes(self, layer: int) -> tuple[str, ...]:
        """The prefixes of the tensor names of one dense FFN."""
        mlp = self.mlp_name(layer)
        return (f"{mlp}.",) if self.mlp else tuple(f"{mlp}.{name}." for name in (*self.up, self.down))

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

# Models that read pictures, with the location of their language model, whose own model type selects the row.
PICTURE_FAMILIES: dict[str, str] = {
    "llava": "model.language_model",
    "idefics3": "model.text_model",
    "smolvlm": "model.text_model",
    "gemma3": "model.language_model",
    "qwen2_vl": "model.language_model",
}
# The dense families whose mixtures fit a stock architecture, by upcycle.normalization.
FAMILIES_OF_ARCHITECTURES: dict[str, tuple[str, ...]] = {"granite": ("llama", "mistral"), "qwen2_moe": ("qwen2",)}
# By model_type: the architecture's name in gguf.MODEL_ARCH, and whether the halves of rotary pairs alternate in llama.cpp.
GGUF_ARCHITECTURES: dict[str, tuple[str, bool]] = {
    "llama": ("LLAMA", True), "mistral": ("LLAMA", True), "qwen2": ("QWEN2", False), "qwen3": ("QWEN3", False),
    "granitemoeshared": ("GRANITE_MOE", True)}
# Language models that occur only inside another model, mapped to their row.
INNER_FAMILIES: dict[str, str] = {"qwen2_vl_text": "qwen2"}


def picture_family(model_type: str, text_model_type: str) -> Family | None:
    """The row of a model that reads pictures; None if its language model belongs to no family in the table."""
    inner = FAMILIES.get(INNER_FAMILIES.get(text_model_type, text_model_type))
    if inner is None:
        return None
    return replace(
        inner, layers=f"{PICTURE_FAMILIES[model_type]}.layers", renamed=(), packs=False, attends_by_example=False,
        reads_pictures=True)
