"""Texts as rows of token ids, and rows of like length together in padded batches."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from jaxcircuits.bundle import Bundle
from jaxcircuits.corpus import END_OF_TEXT
from jaxcircuits.errors import InputError

FORWARD_TOKENS = 8192
"""Tokens a forward pass, padding included: large enough for the cores, small enough for the logits."""

Row = Int[np.ndarray, "_row"]


def rows_of(
    texts: Iterable[str], tokenizer: Tokenizer, n_ctx: int, bos: int | None = None
) -> list[Int[np.ndarray, "_row"]]:
    """One row a text: BOS, its tokens, end of text. A longer one goes on in further rows, each begun with BOS.

    A row has up to `n_ctx + 1` tokens: inputs and, moved by one, what they shall predict. BOS is `<|endoftext|>` unless
    another is given. A tokenizer without `<|endoftext|>` does not say what ends a text, so rows end with their text.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    bos = end if bos is None else bos
    rows = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids = [*encoding.ids, *(() if end is None else (end,))]
        rows += [np.array([bos, *ids[i : i + n_ctx]], np.int32) for i in range(0, len(ids), n_ctx)]
    return rows


def bundle_rows(bundle: Bundle, texts: Sequence[str]) -> list[Row]:
    """The rows of texts for a bundle's model, as `rows_of` makes them.

    Raises:
        InputError: The bundle has no tokenizer or no BOS, or its BOS is not its tokenizer's `<|endoftext|>`.
    """
    if bundle.tokenizer is None:
        raise InputError("this bundle has no tokenizer, so it cannot read text; convert it with its tokenizer.")
    bos, end = bundle.cfg.bos_token_id, bundle.tokenizer.token_to_id(END_OF_TEXT)
    if bos is None or end not in (None, bos):
        raise InputError(
            f"expected a model whose BOS token is {END_OF_TEXT} (id {end}), got id {bos}; "
            "convert it with the tokenizer it was trained with."
        )
    return rows_of(texts, bundle.tokenizer, bundle.cfg.n_ctx, bos)


def padded_lengths(rows: Sequence[Int[np.ndarray, "_row"]], n_ctx: int) -> Int[np.ndarray, "n"]:
    """Each row's count of inputs, padded up to a multiple of an eighth of the context: few shapes are compiled."""
    step = max(8, n_ctx // 8)
    inputs = np.array([len(row) - 1 for row in rows])
    return np.minimum(-(-inputs // step) * step, n_ctx)


def padded_batches(
    rows: Sequence[Row], n_ctx: int, batch_tokens: int = FORWARD_TOKENS
) -> Iterator[tuple[Int[np.ndarray, "_n"], Int[np.ndarray, "_batch _row"]]]:
    """Rows of like length (`padded_lengths`) together, each exactly once; one batch size a length.

    Yields:
        Which rows a batch holds, and the batch: -1 where a row has ended, and in rows that only fill it up.
    """
    padded = padded_lengths(rows, n_ctx)
    for length in np.unique(padded):
        members = np.flatnonzero(padded == length)
        size = max(1, batch_tokens // int(length))
        for i in range(0, len(members), size):
            chosen = members[i : i + size]
            batch = np.full((size, int(length) + 1), -1, np.int32)
            for j, member in enumerate(chosen):
                batch[j, : len(rows[member])] = rows[member]
            yield chosen, batch
