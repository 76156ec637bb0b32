"""Which sources and targets count: from dense activations to padded lists whose capacity always suffices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcircuits.errors import InputError


class Sources(NamedTuple):
    """Sources by position; slots past `counts` repeat feature 0 and are never read."""

    feature: Int[np.ndarray, "pos slot"]
    counts: Int[np.ndarray, "pos"]

    @property
    def valid(self) -> Bool[np.ndarray, "pos slot"]:
        """Which slots hold a source."""
        return np.arange(self.feature.shape[1]) < self.counts[:, None]


class Targets(NamedTuple):
    """Targets of one sequence, by position, then feature."""

    pos: Int[np.ndarray, "target"]
    feature: Int[np.ndarray, "target"]


def bucket(n: int, smallest: int = 8) -> int:
    """The power of two at or above `n`: shapes come in few sizes, so few programs are compiled."""
    return max(smallest, 1 << max(0, n - 1).bit_length())


def length_bucket(n: int, n_ctx: int) -> int:
    """The length a sequence is padded to: 16, 24, 32, 48, 64, 96 ... or the context's end.

    Attention is causal, so padding behind a sequence changes nothing in it.
    """
    power = bucket(n, 16)
    length = power * 3 // 4 if power > 16 and n <= power * 3 // 4 else power
    return min(length, n_ctx)


def select_sources(
    acts: Float[np.ndarray, "pos d_sae"], threshold: float | str, counted: Bool[np.ndarray, "pos"]
) -> Sources:
    """Sources whose activation is strictly greater than the threshold, at the positions that count."""
    d_sae = acts.shape[1]
    if threshold == "all":
        return Sources(np.broadcast_to(np.arange(d_sae, dtype=np.int32), acts.shape), np.where(counted, d_sae, 0))
    pos, feature = np.nonzero((acts > threshold) & counted[:, None])
    count = np.bincount(pos, minlength=len(acts))
    slot = np.arange(len(pos)) - np.repeat(np.cumsum(count) - count, count)
    listed = np.zeros((len(acts), min(d_sae, bucket(int(count.max(initial=0))))), np.int32)
    listed[pos, slot] = feature
    return Sources(listed, count)


def select_targets(
    quantity: Float[np.ndarray, "pos d_sae"], threshold: float, counted: Bool[np.ndarray, "pos"]
) -> Targets:
    """Targets whose quantity is strictly greater than the threshold, at the positions that count."""
    pos, feature = np.nonzero((quantity > threshold) & counted[:, None])
    return Targets(pos.astype(np.int32), feature.astype(np.int32))


def named_targets(targets: Sequence[tuple[int, int]], d_sae: int, counted: Bool[np.ndarray, "pos"]) -> Targets:
    """The targets a user named, `(position, feature)`; a negative position counts from the end.

    Raises:
        InputError: One lies outside the prompt or the SAE, or at a BOS that is left out.
    """
    length = len(counted)
    resolved = []
    for pos, feature in targets:
        if not -length <= pos < length:
            raise InputError(f"target {pos}:{feature}: the prompt has positions 0..{length - 1}, got {pos}.")
        if not 0 <= feature < d_sae:
            raise InputError(f"target {pos}:{feature}: the target SAE has features 0..{d_sae - 1}, got {feature}.")
        if not counted[pos]:
            raise InputError(f"target {pos}:{feature} sits on BOS, which is left out; pass --include-bos to have it.")
        resolved.append((pos % length, feature))
    resolved = sorted(set(resolved))
    return Targets(np.array([p for p, _ in resolved], np.int32), np.array([f for _, f in resolved], np.int32))
