"""What is evaluated: texts or token ids as padded batches, streamed, and whether BOS counts."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.rows import FORWARD_TOKENS, bundle_rows, padded_batches
from jaxcircuits.sae import SAE

BLOCK = 4096
"""Texts in memory at a time."""
LARGEST = 2**22
"""Numbers an array of a batch may have, logits or feature activations: larger ones fall out of a core's cache."""


@dataclass(frozen=True)
class BOS:
    """Whether position 0 counts where it holds BOS. Where a hook is set to zero or its mean, BOS is always covered.

    Attributes:
        statistics: In activation statistics: L0, densities, errors, norms.
        loss: In losses and divergences: what is predicted from BOS alone.
        splice: In splicing; left out, BOS keeps the model's own value.
    """

    statistics: bool = False
    loss: bool = True
    splice: bool = True

    def to_json(self) -> dict[str, str]:
        """In or out, by figure."""
        words = {name: "in" if getattr(self, name) else "out" for name in ("statistics", "loss", "splice")}
        return words | {"ablation": "in"}


class Batch(NamedTuple):
    """Rows of like length.

    Attributes:
        tokens: What the model sees; 0 where a row has ended.
        targets: What each position shall predict; -1 where nothing is known.
        counted: Positions that belong to a row.
        bos: Position 0 where it holds BOS.
    """

    tokens: Int[np.ndarray, "batch pos"]
    targets: Int[np.ndarray, "batch pos"]
    counted: Bool[np.ndarray, "batch pos"]
    bos: Bool[np.ndarray, "batch pos"]


class CorpusFile:
    """The texts of a corpus file, read anew each time they are asked for."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return read_corpus(self.path)


class TextBatches:
    """Batches of texts, each scored on every token and its end; read anew at each iteration, a block in memory.

    Attributes:
        texts, characters: Of the last whole iteration.
    """

    def __init__(self, bundle: Bundle, texts: Iterable[str], saes: Mapping[str, SAE] | None = None) -> None:
        if iter(texts) is texts:
            raise InputError("texts are read more than once: expected a list or a CorpusFile, got an iterator.")
        self._bundle, self._texts, self._saes = bundle, texts, saes or {}
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[Batch]:
        cfg = self._bundle.cfg
        self.texts = self.characters = 0
        texts = iter(self._texts)
        while block := list(islice(texts, BLOCK)):
            self.texts += len(block)
            self.characters += sum(map(len, block))
            for _, batch in padded_batches(
                bundle_rows(self._bundle, block), cfg.n_ctx, batch_tokens(self._bundle, self._saes)
            ):
                yield _batch(batch[:, :-1], batch[:, 1:], batch[:, 1:] >= 0, cfg.bos_token_id)


class TokenBatches:
    """Batches of token ids as they are: each is seen by the model and, but for the first, predicted."""

    def __init__(
        self, bundle: Bundle, ids: Sequence[Int[np.ndarray, "_row"]], saes: Mapping[str, SAE] | None = None
    ) -> None:
        cfg = bundle.cfg
        for number, row in enumerate(ids):
            if not 1 <= len(row) <= cfg.n_ctx:
                raise InputError(f"row {number} has {len(row)} tokens; expected 1 to the context's {cfg.n_ctx}.")
            if (row < 0).any() or (row >= cfg.d_vocab).any():
                raise InputError(f"row {number} has token ids outside 0..{cfg.d_vocab - 1}.")
        self._bundle, self._ids, self._saes = bundle, ids, saes or {}
        self.texts, self.characters = len(ids), 0

    def __iter__(self) -> Iterator[Batch]:
        cfg = self._bundle.cfg
        # One more entry behind each row, so that every token is an input and the last has no target.
        rows = [np.append(row, -1).astype(np.int32) for row in self._ids]
        for _, batch in padded_batches(rows, cfg.n_ctx, batch_tokens(self._bundle, self._saes)):
            yield _batch(batch[:, :-1], batch[:, 1:], batch[:, :-1] >= 0, cfg.bos_token_id)


Batches = TextBatches | TokenBatches


def _batch(
    tokens: Int[np.ndarray, "batch pos"],
    targets: Int[np.ndarray, "batch pos"],
    counted: Bool[np.ndarray, "batch pos"],
    bos_token_id: int | None,
) -> Batch:
    bos = np.zeros(tokens.shape, bool)
    if bos_token_id is not None:
        bos[:, 0] = tokens[:, 0] == bos_token_id
    return Batch(np.maximum(tokens, 0), targets, counted, bos)


def batch_tokens(bundle: Bundle, saes: Mapping[str, SAE]) -> int:
    """Tokens a batch, so that neither logits nor feature activations grow too large."""
    widest = max([bundle.cfg.d_vocab, *(sae.cfg.d_sae for sae in saes.values())])
    return max(bundle.cfg.n_ctx, min(FORWARD_TOKENS, LARGEST // widest))


def chosen(bundle: Bundle, names: Iterable[str] | None) -> dict[str, SAE]:
    """The bundle's autoencoders of these names, or all.

    Raises:
        InputError: There is none, or none of a name.
    """
    if not bundle.saes:
        raise InputError("this bundle has no SAE to evaluate; train or convert one first.")
    for name in names or ():
        if name not in bundle.saes:
            raise InputError(f"the bundle has no SAE {name!r}; it has {', '.join(bundle.saes)}.")
    return {name: sae for name, sae in bundle.saes.items() if names is None or name in set(names)}
