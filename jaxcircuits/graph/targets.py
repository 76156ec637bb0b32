"""Which logits a graph ends in."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.graph.settings import GraphSettings, Token
from jaxcircuits.model.transformer import capped


class LogitTargets(NamedTuple):
    """The logits, each a weighted sum over the vocabulary."""

    token: Int[np.ndarray, "target"]
    minus: Int[np.ndarray, "target"]  # -1 where nothing is subtracted
    probability: Float[np.ndarray, "target"]  # NaN for a difference
    directions: Float[np.ndarray, "target d_vocab"]


def token_id(bundle: Bundle, token: Token) -> int:
    """The id of a token that is named by its text or its id.

    Raises:
        InputError: The text is not one token, or the id lies outside the vocabulary.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph.targets import token_id
    >>> bundle = load_bundle()
    >>> int(bundle.tokenize(" dog")[-1]) == token_id(bundle, " dog")
    True
    """
    if isinstance(token, str):
        if bundle.tokenizer is None:
            raise InputError(f"this bundle has no tokenizer, so name the token by its id, not {token!r}.")
        ids = bundle.tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in bundle.token_strings(np.array(ids, int)))
            raise InputError(
                f"{token!r} must be one token of the model's, got {len(ids)} ({pieces}); most words begin with a space."
            )
        return int(ids[0])
    if not 0 <= token < bundle.cfg.d_vocab:
        raise InputError(f"token ids must lie in 0..{bundle.cfg.d_vocab - 1}, got {token}.")
    return int(token)


def logit_targets(bundle: Bundle, settings: GraphSettings, logits: Float[np.ndarray, "d_vocab"]) -> LogitTargets:
    """The logits that the settings ask for, the most probable first; the mean over the vocabulary is taken off each.

    Where the model caps logits, those of the graph are the ones before, and probabilities are of the capped ones.

    Raises:
        InputError: A token is none.
    """
    probability = softmax(np.asarray(capped(jnp.asarray(logits), bundle.cfg.logit_cap), np.float64))
    d_vocab = len(logits)
    if settings.difference is not None:
        first, second = (token_id(bundle, token) for token in settings.difference)
        if first == second:
            raise InputError(f"a difference is of two different tokens, got {settings.difference[0]!r} twice.")
        directions = np.zeros((1, d_vocab))
        directions[0, first], directions[0, second] = 1, -1
        return LogitTargets(np.array([first]), np.array([second]), np.array([np.nan]), directions)
    if settings.logits is not None:
        chosen = np.array(list(dict.fromkeys(token_id(bundle, token) for token in settings.logits)))
        chosen = chosen[np.argsort(-probability[chosen], kind="stable")]
    else:
        order = np.argsort(-probability, kind="stable")[: settings.top_logits]
        enough = int(np.searchsorted(np.cumsum(probability[order]), settings.logit_mass)) + 1
        chosen = order[:enough]
    directions = np.full((len(chosen), d_vocab), -1 / d_vocab)
    directions[np.arange(len(chosen)), chosen] += 1
    return LogitTargets(chosen, np.full(len(chosen), -1), probability[chosen], directions)
