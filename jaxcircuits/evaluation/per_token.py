"""The loss of each token of one text: as the model is, with each autoencoder spliced in, and with its hook at zero."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation.batches import BOS, TokenBatches, chosen
from jaxcircuits.evaluation.loss import Variant, batch_losses


@dataclass(frozen=True)
class TextLosses:
    """Losses of one text.

    Attributes:
        tokens: Token ids; the first is seen and not predicted.
        strings: The same as text.
        losses: Nats of tokens 1, 2, … by column: `original`; for each autoencoder `reconstructed NAME` and `ablated
            NAME` (its hook at zero); `all reconstructed` where no two of several write one hook.
    """

    tokens: Int[np.ndarray, "pos"]
    strings: list[str]
    losses: dict[str, Float[np.ndarray, "_n"]]

    def to_json(self) -> dict[str, Any]:
        """As lists; a loss of `null` is the first token's."""
        return {
            "tokens": self.tokens.tolist(),
            "strings": self.strings,
            "losses": {name: [None, *values.tolist()] for name, values in self.losses.items()},
        }


def token_losses(
    bundle: Bundle,
    text: str | Int[np.ndarray, "pos"],
    *,
    saes: Iterable[str] | None = None,
    bos: BOS = BOS(),  # noqa: B008  (frozen)
) -> TextLosses:
    """The loss of each token of one text.

    Args:
        bundle: Model, autoencoders and tokenizer.
        text: A text, or token ids as they are; it must fit the context.
        saes: Names of autoencoders; all by default.
        bos: Whether splicing covers BOS.

    Raises:
        InputError: The text does not fit, or is one token only; there is no such autoencoder.

    >>> from jaxcircuits import load_bundle, token_losses
    >>> found = token_losses(load_bundle(), "Once upon a time")
    >>> len(found.tokens), len(found.losses["original"])
    (5, 4)
    """
    some = chosen(bundle, saes)
    ids = bundle.tokenize(text) if isinstance(text, str) else np.asarray(text, np.int32)
    if len(ids) < 2:
        raise InputError(f"the loss of a token needs one before it: expected at least two tokens, got {len(ids)}.")
    variants: dict[str, Variant | None] = {"original": None}
    for name, sae in some.items():
        zero = jnp.zeros(sae.cfg.width_written, bundle.params.W_E.dtype)
        variants[f"reconstructed {name}"] = Variant({name: sae}, {})
        variants[f"ablated {name}"] = Variant({}, {sae.cfg.hook_written: zero})
    if len({sae.cfg.hook_written for sae in some.values()}) == len(some) > 1:
        variants["all reconstructed"] = Variant(some, {})
    (batch,) = TokenBatches(bundle, [ids], some)
    with jax.default_matmul_precision("highest"):
        original, found = batch_losses(bundle, batch, [v for v in variants.values() if v is not None], bos)
    losses = {n: each.nll[0, : len(ids) - 1] for n, each in zip(variants, (original, *found), strict=True)}
    return TextLosses(ids, bundle.token_strings(ids), losses)
