"""How well a language model predicts texts."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxcircuits.bundle import Bundle
from jaxcircuits.evaluation.batches import BOS, TextBatches
from jaxcircuits.evaluation.loss import Means, batch_losses


def evaluate_lm(bundle: Bundle, texts: Iterable[str]) -> dict[str, float | int]:
    """Every token scored, the first and the end of text included, each text alone.

    Returns:
        `nats_per_token` (tokens and each text's end), `bits_per_character` (the same total in bits over the number
        of characters), and `tokens`, `characters`, `texts`.
    """
    batches, means = TextBatches(bundle, texts), Means(BOS())
    for batch in batches:
        means.add(batch, batch_losses(bundle, batch, (), BOS())[0])
    return _rates(means.total, means.scored, batches.characters, batches.texts)


def rates(total_nats: float, tokens: int, texts: Sequence[str]) -> dict[str, float | int]:
    """A total of nats as nats a token and bits a character."""
    return _rates(total_nats, tokens, sum(map(len, texts)), len(texts))


def _rates(total_nats: float, tokens: int, characters: int, texts: int) -> dict[str, float | int]:
    return {
        "nats_per_token": total_nats / tokens,
        "bits_per_character": total_nats / np.log(2) / characters,
        "tokens": tokens,
        "characters": characters,
        "texts": texts,
    }
