"""Which edges are measured: of each target its strongest sources, those of largest cosine, and others by chance."""

import numpy as np
from jaxtyping import Float, Int

STRATA = ("strongest", "largest cosine", "random")
"""Why a source was chosen: by the exact attribution, by the cosine's, or by chance."""

OFFSETS = ("same position", "1 earlier", "2 to 3 earlier", "4 or more earlier")


def offset_class(offsets: Int[np.ndarray, "edge"]) -> Int[np.ndarray, "edge"]:
    """Which of `OFFSETS` an edge belongs to.

    >>> import numpy as np
    >>> from jaxcircuits.validation.sampling import offset_class
    >>> offset_class(np.array([0, 1, 2, 3, 4, 90])).tolist()
    [0, 1, 2, 2, 3, 3]
    """
    return np.searchsorted([1, 2, 4], offsets, side="right")


def choose_sources(
    exact: Float[np.ndarray, "edge"],
    cosine: Float[np.ndarray, "edge"],
    offsets: Int[np.ndarray, "edge"],
    n: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "_chosen"], Int[np.ndarray, "_chosen"]]:
    """Chooses sources of one target: a quarter by either score's size, the rest at random, spread over the offsets.

    Args:
        exact: Exact attributions of the target's edges.
        cosine: What the cosine predicts.
        offsets: Tokens between source and target.
        n: How many; all where there are fewer.
        rng: For the random ones.

    Returns:
        Indices of edges, and why each was chosen: an index into `STRATA`. Of one that two reasons choose, the first.
    """
    chosen: list[int] = []
    strata: list[int] = []
    for stratum, score in enumerate((exact, cosine)):
        order = np.argsort(-np.abs(score), kind="stable")
        fresh = order[~np.isin(order, chosen)] if stratum else order
        chosen += fresh[: n // 4].tolist()
        strata += [stratum] * len(fresh[: n // 4])
    rest = rng.permutation(np.setdiff1d(np.arange(len(exact)), chosen))
    # In turn from each class of offsets, as long as there are some.
    turn = np.zeros(len(rest), np.int64)
    for members in (np.flatnonzero(offset_class(offsets[rest]) == c) for c in range(len(OFFSETS))):
        turn[members] = np.arange(len(members))
    drawn = rest[np.argsort(turn, kind="stable")][: n - len(chosen)]
    return np.array([*chosen, *drawn], np.int64), np.array([*strata, *[2] * len(drawn)], np.int64)
