"""What Hugging Face's models share: config fields that mean the same in each, and how a head may be tied."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcircuits.convert.checkpoint import weight_files
from jaxcircuits.convert.format import required
from jaxcircuits.errors import InputError

INERT = {
    *("add_cross_attention", "cross_attention_hidden_size", "is_decoder", "is_encoder_decoder", "pruned_heads"),
    *("tie_encoder_decoder", "output_attentions", "output_hidden_states", "torchscript", "use_bfloat16"),
}
"""Fields of every Hugging Face config that change nothing as long as they are off."""
HARMLESS = {
    # How it was made and what wrote it.
    *("_name_or_path", "_commit_hash", "architectures", "transformers_version", "dtype", "torch_dtype"),
    *("initializer_range", "gradient_checkpointing", "finetuning_task", "task_specific_params", "tokenizer_class"),
    # Used in training only.
    *("attention_dropout", "embed_dropout", "resid_dropout", "classifier_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    # Another way to the same numbers.
    *("use_cache", "return_dict", "chunk_size_feed_forward", "_attn_implementation_autoset", "attn_implementation"),
    # Of heads that a language model does not have.
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("id2label", "label2id", "problem_type", "num_labels", "tf_legacy_loss"),
    # Of text generation.
    *("eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix", "max_length", "min_length"),
    *("do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k"),
    *("top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "return_dict_in_generate"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
    *("begin_suppress_tokens", "exponential_decay_length_penalty"),
}
_GPT2_BOS = 50256
GPT2_DEFAULTS = {"activation": "gelu_new", "bos_token_id": _GPT2_BOS, "tie_word_embeddings": True}
"""What GPT-2's config, and GPT-Neo's after it, say where they say nothing."""
_ACTIVATIONS = {
    **{"gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"},
    **{"gelu_new": "gelu_new", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new"},
}
"""Hugging Face's words for activation functions, and ours; the last three differ in rounding alone."""


def choose(names: Sequence[str]) -> list[str]:
    """Of a hub repository's files, those of the model."""
    return [*(name for name in names if name == "config.json"), *weight_files(names)]


def understood(fields: Mapping[str, Any], names: set[str]) -> set[str]:
    """Fields that are read, and those that change nothing because they are off."""
    return names | {name for name in INERT if not fields.get(name)}


def count(fields: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    """A field that is a positive integer.

    Raises:
        InputError: It is not, or is missing and has no default.
    """
    value = required(fields, name, where) if default is None else fields.get(name, default)
    if type(value) is not int or value < 1:
        raise InputError(f"{where}: {name} must be a positive integer, got {value!r}.")
    return value


def flag(fields: Mapping[str, Any], name: str, where: str, default: bool) -> bool:
    """A field that is true or false.

    Raises:
        InputError: It is something else.
    """
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false, got {value!r}.")
    return value


def head_width(d_model: int, n_heads: int, names: tuple[str, str], where: str) -> int:
    """Width of a head.

    Raises:
        InputError: The heads do not divide the model's width.
    """
    if d_model % n_heads:
        raise InputError(f"{where}: {names[0]} ({d_model}) must be a multiple of {names[1]} ({n_heads}).")
    return d_model // n_heads


def epsilon(fields: Mapping[str, Any], where: str, name: str, default: float) -> float:
    """What is added to a norm's variance.

    Raises:
        InputError: It is no number.
    """
    eps = fields.get(name, default)
    if type(eps) not in (int, float):
        raise InputError(f"{where}: {name} must be a number such as 1e-05, got {eps!r}.")
    return float(eps)


def activation(fields: Mapping[str, Any], name: str, where: str, default: str) -> str:
    """The MLP's activation function.

    Raises:
        InputError: It is another than the model has here.
    """
    word = fields.get(name, default)
    if not isinstance(word, str) or word not in _ACTIVATIONS:
        raise InputError(f"{where}: {name} must be one of {', '.join(_ACTIVATIONS)}, got {word!r}.")
    return _ACTIVATIONS[word]


def bos_token(fields: Mapping[str, Any], d_vocab: int, where: str, default: int) -> int | None:
    """The id of BOS; none where GPT-2's id stands in the config of a smaller vocabulary, as transformers writes it.

    Raises:
        InputError: It is no token id.
    """
    bos = fields.get("bos_token_id", default)
    if bos == _GPT2_BOS and d_vocab <= bos:
        return None
    if bos is not None and type(bos) is not int:
        raise InputError(f"{where}: bos_token_id must be a token id or null, got {bos!r}.")
    return bos


def is_tied(
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    embedding: str,
    unembedding: str,
    where: str,
    default: bool,
) -> bool:
    """Whether the unembedding is the embedding: asked for by the config, and not contradicted by the weights.

    Source: Hugging Face transformers 5, which keeps a stored head that differs whatever the config says.
    """
    tie = flag(fields, "tie_word_embeddings", where, default)
    head, embedded = tensors.get(unembedding), tensors.get(embedding)
    return tie and (head is None or embedded is None or np.array_equal(head, embedded))
