"""Frozen descriptions of models and autoencoders: numbers and words, JSON in and out, unknown fields refused."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from jaxcircuits.errors import InputError

PROCESSING_STEPS = ("fold_layer_norm", "center_writing_weights", "center_unembed", "fold_value_biases")
"""TransformerLens' weight processing, in its order."""

FAMILIES = ("gpt_neo", "gpt2", "gpt_neox", "gemma2")
"""Architectures that weights may come from."""

POSITIONS = ("learned", "rotary")
"""How a model knows where a token is: a vector added to its embedding, or queries and keys that are turned."""

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu")
"""What stands between an MLP's two matrices; `model.activations` computes them. `gelu_new` is GELU's tanh form."""


NORMS = ("layer", "rms")
"""A layer norm centres, divides by the standard deviation, scales and shifts; an RMS norm divides by the root mean
square and scales."""


class _JSONConfig:
    """JSON round trip for the dataclasses below: lists become tuples, unknown or missing fields are refused."""

    @classmethod
    def from_json(cls, fields: Any, where: str = "config") -> Self:
        """Builds the config from parsed JSON.

        Args:
            fields: The parsed object.
            where: What to call it in an error, usually the file's path.

        Raises:
            InputError: It is no object, or a field is unknown, missing, or has a value that the config refuses.
        """
        if not isinstance(fields, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(fields).__name__}; convert the source again.")
        known = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise InputError(f"{where}: unknown field {unknown[0]!r}; this version understands {', '.join(known)}.")
        required = [n for n, f in known.items() if f.default is dataclasses.MISSING]
        missing = [n for n in required if n not in fields]
        if missing:
            raise InputError(f"{where}: the field {missing[0]!r} is missing; add it or convert the source again.")
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except TypeError:
            raise InputError(f"{where}: a field has a value of the wrong type; convert the source again.") from None

    def to_json(self) -> dict[str, Any]:
        """The config as an object that `json.dumps` takes."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class ModelConfig(_JSONConfig):
    """A pre-norm decoder-only transformer; what sets a family apart is data here, not code elsewhere.

    Attributes:
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_heads: Attention heads a layer.
        d_head: Width of a head.
        d_mlp: Width of the MLP's hidden layer.
        d_vocab: Vocabulary size.
        n_ctx: Longest sequence, in tokens.
        attention: One of `"global"` and `"local"` a layer.
        window: Keys a local query sees, itself included.
        eps: Added to the variance inside the norm's square root.
        attention_scale: Scores are multiplied by it (GPT-Neo: 1, no scaling).
        bos_token_id: Put before text; `None` where the model has none.
        tied_unembedding: Whether the stored unembedding is the transposed embedding.
        family: The architecture the weights came from.
        processing: Weight-processing steps that `load_bundle` applies, in order.
        positions: One of `POSITIONS`.
        rotary_dim: Of each head, the numbers that are turned; `None` unless positions are rotary.
        rotary_base: The slowest turns by about 1 / `rotary_base` a position, the fastest by 1 (in radians).
        parallel_residual: Whether a block's MLP reads the residual stream before its attention, not after.
        activation: One of `ACTIVATIONS`.
        n_kv_heads: Heads that have keys and values, each read by as many queries; `None` for all of them.
        norm: One of `NORMS`.
        norms_behind: Whether what attention and MLP write passes a norm of its own before it is added.
        gated: Whether an MLP's activation is multiplied by another linear map of its input.
        score_cap: Attention scores are brought into `-score_cap..score_cap` by a tanh; `None` for as they are.
        logit_cap: Logits likewise.
        embedding_scale: Embeddings are multiplied by it.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    attention: tuple[str, ...]
    window: int
    eps: float = 1e-5
    attention_scale: float = 1.0
    bos_token_id: int | None = None
    tied_unembedding: bool = False
    family: str = "gpt_neo"
    processing: tuple[str, ...] = PROCESSING_STEPS
    positions: str = "learned"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    parallel_residual: bool = False
    activation: str = "gelu_new"
    n_kv_heads: int | None = None
    norm: str = "layer"
    norms_behind: bool = False
    gated: bool = False
    score_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "window", "n_kv_heads"):
            value = getattr(self, name)
            if value is None and name == "n_kv_heads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}.")
        for name in ("eps", "attention_scale", "rotary_base", "embedding_scale", "score_cap", "logit_cap"):
            value = getattr(self, name)
            if value is None and name in ("score_cap", "logit_cap"):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise InputError(f"{name} must be a positive number, got {value!r}.")
        if len(self.attention) != self.n_layers:
            raise InputError(f"attention must name {self.n_layers} layers, got {len(self.attention)}.")
        for kind in self.attention:
            if kind not in ("global", "local"):
                raise InputError(f"attention must be 'global' or 'local', got {kind!r}.")
        if self.family not in FAMILIES:
            raise InputError(f"the model family must be {' or '.join(map(repr, FAMILIES))}, got {self.family!r}.")
        for step in self.processing:
            if step not in PROCESSING_STEPS:
                raise InputError(f"unknown processing step {step!r}; known are {', '.join(PROCESSING_STEPS)}.")
            if step in self.undefined_steps:
                raise InputError(f"the processing step {step} is not defined here, as {self.undefined_steps[step]}.")
        bos = self.bos_token_id
        if bos is not None and not (isinstance(bos, int) and 0 <= bos < self.d_vocab):
            raise InputError(f"bos_token_id must lie in 0..{self.d_vocab - 1}, got {bos!r}.")
        for name, known in (("positions", POSITIONS), ("activation", ACTIVATIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        for name in ("parallel_residual", "norms_behind", "gated"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if self.n_heads % self.kv_heads:
            raise InputError(f"n_kv_heads must divide the {self.n_heads} heads, got {self.n_kv_heads}.")
        turned = self.rotary_dim
        if (turned is not None) != self.rotary:
            raise InputError(f"rotary_dim belongs to rotary positions, got {turned!r} and positions {self.positions}.")
        if turned is not None and (type(turned) is not int or turned % 2 or not 2 <= turned <= self.d_head):
            raise InputError(f"rotary_dim must be an even number of the head's {self.d_head}, got {turned!r}.")

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are turned; there is no `W_pos` then."""
        return self.positions == "rotary"

    @property
    def kv_heads(self) -> int:
        """Heads that have keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def undefined_steps(self) -> dict[str, str]:
        """Steps of weight processing that would change what the model computes, and why."""
        steps = {}
        if self.norm == "rms" or self.norms_behind:
            steps["center_writing_weights"] = "not every norm here ignores the mean of what is written"
        if self.gated and self.norm == "layer":
            steps["fold_layer_norm"] = "a gate has no bias that takes up a norm's shift"
        if self.logit_cap is not None:
            steps["center_unembed"] = "a shift of all logits is not ignored where they are capped"
        return steps

    @property
    def scored(self) -> tuple[str, str]:
        """The hook points in each block of the queries and keys whose products are the scores."""
        return ("attn.hook_rot_q", "attn.hook_rot_k") if self.rotary else ("attn.hook_q", "attn.hook_k")

    @property
    def mlp_stream(self) -> str:
        """The hook point in each block whose value the MLP reads through its norm."""
        return "hook_resid_pre" if self.parallel_residual else "hook_resid_mid"


SAE_ACTIVATIONS = ("relu", "jumprelu", "topk", "groupmax")
"""What turns an autoencoder's pre-activations into feature activations; `sae.activations` computes them."""
NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
"""What an autoencoder does to its input first, and undoes in its output; `sae.normalization` computes them."""


@dataclass(frozen=True)
class SAEConfig(_JSONConfig):
    """A sparse autoencoder on one hook point, or a transcoder from one to another.

    Attributes:
        d_in: Width of the hook's value.
        d_sae: Number of features.
        hook_name: TransformerLens' name of the hook point that is read.
        activation: What turns pre-activations into feature activations, one of `SAE_ACTIVATIONS`.
        subtract_b_dec: Whether the encoder subtracts the decoder's bias first.
        k: Features that a `topk` keeps, or the groups of a `groupmax`.
        normalization: What is done to the input first, one of `NORMALIZATIONS`.
        hook_out: The hook point a transcoder writes; `None` for an autoencoder, which writes what it reads.
        d_out: Its width; `None` where it is `d_in`.
        skip: Whether a linear map of the input is added to a transcoder's output.
        origin: Format and architecture it was converted from, for people.
    """

    d_in: int
    d_sae: int
    hook_name: str
    activation: str = "relu"
    subtract_b_dec: bool = True
    k: int | None = None
    normalization: str = "none"
    hook_out: str | None = None
    d_out: int | None = None
    skip: bool = False
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae", "k", "d_out"):
            value = getattr(self, name)
            if value is None and name in ("k", "d_out"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a positive integer, got {value!r}.")
        for name in ("hook_name", "activation", "normalization", "origin"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a word, got {getattr(self, name)!r}.")
        if self.hook_out is not None and not isinstance(self.hook_out, str):
            raise InputError(f"hook_out must be a word, got {self.hook_out!r}.")
        for name in ("subtract_b_dec", "skip"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if self.activation not in SAE_ACTIVATIONS:
            raise InputError(
                f"unknown SAE activation {self.activation!r}; this version has {', '.join(SAE_ACTIVATIONS)}."
            )
        if self.normalization not in NORMALIZATIONS:
            raise InputError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {self.normalization!r}.")
        if (self.k is not None) != (self.activation in ("topk", "groupmax")):
            raise InputError(f"k belongs to the activations topk and groupmax, got {self.activation} and k {self.k}.")
        if self.k is not None and self.k > self.d_sae:
            raise InputError(f"k must not exceed the {self.d_sae} features, got {self.k}.")
        if self.activation == "groupmax" and self.d_sae % (self.k or 1):
            raise InputError(f"groupmax needs k groups of one size, got {self.d_sae} features and k {self.k}.")
        if not self.transcodes and (self.d_out is not None or self.skip):
            raise InputError("d_out and skip belong to a transcoder, which names its hook_out.")
        if self.transcodes and (self.subtract_b_dec or self.normalization != "none"):
            raise InputError("a transcoder neither subtracts b_dec nor normalises: they are of the other hook's value.")

    @property
    def transcodes(self) -> bool:
        """Whether it writes another hook point than it reads."""
        return self.hook_out is not None

    @property
    def hook_written(self) -> str:
        """The hook point whose value it describes as a sum of features."""
        return self.hook_name if self.hook_out is None else self.hook_out

    @property
    def width_written(self) -> int:
        """Width of that value."""
        return self.d_in if self.d_out is None else self.d_out


def check_seed(seed: int) -> None:
    """Refuses a seed that not every random generator here takes.

    Raises:
        InputError: It is negative or needs more than 31 bits.
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must lie in 0..2147483647, got {seed}.")
