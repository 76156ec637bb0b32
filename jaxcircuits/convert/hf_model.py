"""A model family as Hugging Face stores it, as data: names of config fields, tensors and their layouts.

`read_model` reads any family from its `Family`; what one does otherwise stands in its own file.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from jaxcircuits.config import ModelConfig
from jaxcircuits.convert.arrays import at_least_float32
from jaxcircuits.convert.checkpoint import read_weights
from jaxcircuits.convert.format import ConvertedModel, ModelFormat, Options, check_fields, checked_tensors, read_fields
from jaxcircuits.convert.hugging_face import (
    HARMLESS,
    activation,
    bos_token,
    choose,
    count,
    epsilon,
    head_width,
    is_tied,
    understood,
)
from jaxcircuits.errors import InputError
from jaxcircuits.tensors import model_from_tensors, model_shapes

Fields = Mapping[str, Any]
Rows = Mapping[str, tuple[str, ...]]
"""A checkpoint's tensor to its layout and the arrays that it holds.

The layout is einops': the axes as they are stored, and as they are here. Where a tensor holds several arrays, its axes
here begin with one of that length. Axes are `head kv_head d_head d_model d_mlp d_vocab n_ctx`, and `qkv`: 3.
"""

VECTOR = "d_model -> d_model"
LINEAR_IN, LINEAR_OUT = "d_mlp d_model -> d_model d_mlp", "d_model d_mlp -> d_mlp d_model"
"""An MLP's two matrices as PyTorch's linear layers, which are `[out, in]`."""
HEADS_IN, HEADS_OUT = "(head d_head) d_model -> head d_model d_head", "d_model (head d_head) -> head d_head d_model"
"""The same of matrices into heads and out of them."""
EMBEDDING = "d_vocab d_model -> d_vocab d_model"
UNEMBEDDING = "d_vocab d_model -> d_model d_vocab"


class Sizes(NamedTuple):
    """What a family's other fields may depend on."""

    n_layers: int
    d_model: int
    d_head: int
    n_ctx: int


class Family(NamedTuple):
    """How one family is stored.

    Attributes:
        names: Fields of `ModelConfig` to those of Hugging Face's config that mean the same: `n_layers`, `d_model`,
            `n_heads`, `d_mlp`, `d_vocab`, `n_ctx`, `eps` and `activation`, and `d_head` where it is not what the
            heads leave of `d_model`.
        defaults: What `activation`, `bos_token_id` and `tie_word_embeddings` are where the config does not say, and
            `eps` where that is not 1e-5.
        others: Other config fields that `more` understands.
        more: From the config, the sizes and the file's name, the other fields of `ModelConfig`.
        harmless: Config fields that change nothing, besides those of every model.
        prefix: Of all tensors but the unembedding; a checkpoint of the model without its head may lack it.
        outside: Tensors outside the blocks, without the prefix: the embeddings and the last norm.
        embedding: The one of them that the unembedding may be tied to.
        blocks: What the blocks are called, followed by their number.
        block: From the config, the tensors of each block.
        buffers: Tensors of a block that are no weights, which old checkpoints hold.
        heads: Names that the unembedding may have.
        norm_offset: Added to the norms' scales, which are stored without it.
    """

    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    others: Collection[str]
    more: Callable[[Fields, Sizes, str], Mapping[str, Any]]
    harmless: Collection[str]
    prefix: str
    outside: Rows
    embedding: str
    blocks: str
    block: Callable[[Fields], Rows]
    buffers: Collection[str]
    heads: tuple[str, ...]
    norm_offset: float = 0.0


def model_format(family: Family) -> ModelFormat:
    """The format of a family."""
    return ModelFormat(choose, partial(read_model, family))


def read_model(family: Family, path: Path, options: Options) -> ConvertedModel:
    """Reads a directory's config and weights.

    Raises:
        InputError: A field or tensor is missing, not understood, or of another value or shape than it may have.

    Source: Hugging Face transformers 5.24 for names and defaults, TransformerLens 3.9 for the layout of weights.
    """
    config = path / "config.json"
    fields, where = read_fields(config, "model"), str(config)
    names = {"model_type", "bos_token_id", "tie_word_embeddings", *family.names.values(), *family.others}
    check_fields(fields, understood(fields, names), {*HARMLESS, *family.harmless}, options, where)
    stored, files = read_weights(path, "model")
    bare = family.embedding in stored  # without the head, so without its prefix: the first checkpoints of GPT-2
    tensors = {f"{family.prefix}{name}" if bare else name: tensor for name, tensor in stored.items()}
    head = next((name for name in family.heads if name in tensors), family.heads[0])
    tied = is_tied(
        fields, tensors, f"{family.prefix}{family.embedding}", head, where, family.defaults["tie_word_embeddings"]
    )
    try:
        cfg = replace(_config(family, fields, where), tied_unembedding=tied)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    rows = _rows(family, cfg, fields) | ({} if tied else {head: (UNEMBEDDING, "W_U")})
    layers = range(cfg.n_layers)
    unused = {f"{family.prefix}{family.blocks}.{layer}.{name}" for layer in layers for name in family.buffers}
    unused |= {head} if tied else set()
    weights = {name: tensor for name, tensor in tensors.items() if name not in unused}
    sizes = _axes(cfg)
    shapes = {name: stored_shape(layout, sizes) for name, (layout, *_) in rows.items()}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in checked_tensors(weights, shapes, options, str(path)).items():
        arrays |= placed(tensor, *rows[name], sizes=sizes)
    if family.norm_offset:
        scales = {name: array for name, array in arrays.items() if name.endswith(".w")}
        arrays |= {name: array.astype(at_least_float32(array)) + family.norm_offset for name, array in scales.items()}
    for name, shape in model_shapes(cfg).items():
        if name not in arrays and name.rpartition(".")[2].startswith("b_"):  # biases that the family lacks
            arrays[name] = np.zeros(shape, arrays["W_E"].dtype)
    return ConvertedModel(cfg, model_from_tensors(arrays, cfg, str(path)), [config, *files])


def _config(family: Family, fields: Fields, where: str) -> ModelConfig:
    names = family.names
    number = {
        name: count(fields, names[name], where) for name in ("n_layers", "d_model", "n_heads", "d_vocab", "n_ctx")
    }
    if "d_head" in names:
        d_head = count(fields, names["d_head"], where)
    else:
        d_head = head_width(number["d_model"], number["n_heads"], (names["d_model"], names["n_heads"]), where)
    wide = fields.get(names["d_mlp"]) is not None
    return ModelConfig(
        **number,
        d_head=d_head,
        d_mlp=count(fields, names["d_mlp"], where) if wide else 4 * number["d_model"],
        eps=epsilon(fields, where, names["eps"], family.defaults.get("eps", 1e-5)),
        activation=activation(fields, names["activation"], where, family.defaults["activation"]),
        bos_token_id=bos_token(fields, number["d_vocab"], where, family.defaults["bos_token_id"]),
        **family.more(fields, Sizes(number["n_layers"], number["d_model"], d_head, number["n_ctx"]), where),
    )


def _rows(family: Family, cfg: ModelConfig, fields: Fields) -> dict[str, tuple[str, ...]]:
    """Every tensor but the unembedding, by its whole name."""
    rows = {f"{family.prefix}{name}": row for name, row in family.outside.items()}
    for layer in range(cfg.n_layers):
        for name, (layout, *arrays) in family.block(fields).items():
            held = (f"blocks.{layer}.{array}" for array in arrays)
            rows[f"{family.prefix}{family.blocks}.{layer}.{name}"] = (layout, *held)
    return rows


def _axes(cfg: ModelConfig) -> dict[str, int]:
    sizes = {name: getattr(cfg, name) for name in ("d_head", "d_model", "d_mlp", "d_vocab", "n_ctx")}
    return {"head": cfg.n_heads, "kv_head": cfg.kv_heads, "qkv": 3, **sizes}


def stored_shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a tensor of this layout has in a checkpoint.

    >>> from jaxcircuits.convert.hf_model import HEADS_IN, stored_shape
    >>> stored_shape(HEADS_IN, {"head": 3, "d_head": 4, "d_model": 12})
    (12, 12)
    """
    axes = re.findall(r"\([^)]*\)|\w+", layout.partition("->")[0])
    return tuple(math.prod(sizes[name] for name in axis.strip("()").split()) for axis in axes)


def placed(tensor: np.ndarray, layout: str, *names: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The arrays that a tensor holds, by name."""
    needed = {name: sizes[name] for name in re.findall(r"\w+", layout.partition("->")[0])}
    array = rearrange(tensor, layout, **needed)
    return {names[0]: array} if len(names) == 1 else dict(zip(names, array, strict=True))


def norm(stored: str, name: str) -> dict[str, tuple[str, ...]]:
    """Rows of a layer norm."""
    return {f"{stored}.weight": (VECTOR, f"{name}.w"), f"{stored}.bias": (VECTOR, f"{name}.b")}


GPT2_OUTSIDE = {
    "wte.weight": (EMBEDDING, "W_E"),
    "wpe.weight": ("n_ctx d_model -> n_ctx d_model", "W_pos"),
    **norm("ln_f", "ln_final"),
}
"""What lies outside the blocks of GPT-2, and of GPT-Neo, which took its names."""
