"""What is attributed: prompts by number, and targets by name."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError

Prompts = Sequence[tuple[int, Int[np.ndarray, "_pos"]]]
"""Row number and token ids of each."""

Named = Sequence[tuple[int, int]] | None
"""Targets by position and feature, the same in each prompt."""


def check_tokens(tokens: Int[np.ndarray, "pos"], bundle: Bundle, row: int) -> None:
    """Refuses token ids that the model cannot take.

    Raises:
        InputError: None, too many, or one outside the vocabulary.
    """
    cfg = bundle.cfg
    if len(tokens) == 0:
        raise InputError(f"prompt {row} is empty; expected at least one token.")
    if len(tokens) > cfg.n_ctx:
        raise InputError(
            f"prompt {row} has {len(tokens)} tokens, BOS included, but the model's context holds {cfg.n_ctx}; "
            "shorten it, or pass --truncate."
        )
    if tokens.min() < 0 or tokens.max() >= cfg.d_vocab:
        bad = tokens[(tokens < 0) | (tokens >= cfg.d_vocab)][0]
        raise InputError(f"prompt {row}: token ids must lie in 0..{cfg.d_vocab - 1}, got {bad}.")
