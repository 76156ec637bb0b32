"""Which features of two autoencoders are active where in some stories: one pass, kept sparse."""

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import sparse

from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.evaluation.batches import batch_tokens
from jaxcircuits.interventions import intervene
from jaxcircuits.progress import progress
from jaxcircuits.rows import padded_batches


@dataclass(frozen=True)
class Activity:
    """Active features at every token of some stories, BOS left out.

    A token's row is `story * stride + pos`; the stride is so wide that an offset never leads into another story.

    Attributes:
        stories: Token ids of each.
        stride: Rows a story.
        counted: Rows that hold a token.
        source: Activations of the source autoencoder `[row, d_sae]`, sparse by column.
        target: Those of the target autoencoder.
    """

    stories: list[Int[np.ndarray, "_pos"]]
    stride: int
    counted: Int[np.ndarray, "n"]
    source: sparse.csc_array
    target: sparse.csc_array

    def active_targets(self, story: int) -> Int[np.ndarray, "n 2"]:
        """Position and feature of every active target of a story."""
        rows = self._target_rows[story * self.stride : (story + 1) * self.stride].tocoo()
        return np.stack([rows.row, rows.col], axis=1).astype(np.int64)

    @cached_property
    def _target_rows(self) -> sparse.csr_array:
        return self.target.tocsr()

    def strongest(self, target: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Where a target is strongest, one place a story: stories, positions and activations, the strongest first."""
        rows, values = column(self.target, target)
        order = np.lexsort((rows, -values))
        _, first = np.unique(rows[order] // self.stride, return_index=True)
        order = order[np.sort(first)]
        return rows[order] // self.stride, rows[order] % self.stride, values[order]

    def correlation(self, source: int, target: int, offset: int) -> float:
        """Pearson's correlation of a target's activation with a source's `offset` tokens earlier, over all stories.

        Means and deviations are of all tokens; 0 where a feature never varies.
        """
        n = len(self.counted)
        (at, a), (then, b) = column(self.source, source), column(self.target, target)
        _, i, j = np.intersect1d(at + offset, then, assume_unique=True, return_indices=True)
        moments = [(values.sum() / n, (values**2).sum() / n) for values in (a, b)]
        (mean_a, square_a), (mean_b, square_b) = moments
        size = np.sqrt((square_a - mean_a**2) * (square_b - mean_b**2))
        return float((a[i] @ b[j] / n - mean_a * mean_b) / size) if size > 0 else 0.0


def column(matrix: sparse.csc_array, feature: int) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Rows in which a feature is active, ascending, and its activations there."""
    part = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
    return matrix.indices[part].astype(np.int64), matrix.data[part].astype(np.float64)


def find_activity(
    bundle: Bundle, pair: Pair, stories: list[Int[np.ndarray, "_pos"]], *, quiet: bool = True
) -> Activity:
    """Runs the model over stories and keeps what is active.

    Args:
        bundle: Model and autoencoders.
        pair: Which two.
        stories: Token ids of each.
        quiet: No progress bar.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.attribution.problem import Settings, resolve
    >>> from jaxcircuits.validation.activity import find_activity
    >>> bundle = load_bundle()
    >>> stories = [bundle.tokenize(text) for text in ("She saw two birds.", "The dog ran home.")]
    >>> activity = find_activity(bundle, resolve(bundle, Settings()), stories)
    >>> bool((activity.active_targets(0)[:, 0] > 0).all()), len(activity.counted) == sum(map(len, stories)) - 2
    (True, True)
    """
    stride = 2 * max(len(ids) for ids in stories)
    names = (pair.source_name, pair.target_name)
    saes = {name: bundle.saes[name] for name in names}
    rows = [np.append(ids, -1).astype(np.int32) for ids in stories]  # a row's last entry is only predicted
    found: tuple[list, list] = ([], [])
    counted = []
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        task = bar.add_task("activations", total=len(stories))
        for chosen, batch in padded_batches(rows, bundle.cfg.n_ctx, batch_tokens(bundle, saes)):
            tokens = np.maximum(batch[:, :-1], 0)
            there = batch[: len(chosen), :-1] >= 0
            if bundle.cfg.bos_token_id is not None:
                there[:, 0] &= tokens[: len(chosen), 0] != bundle.cfg.bos_token_id
            counted.append((chosen[:, None] * stride + np.arange(there.shape[1]))[there])
            for kept, acts in zip(
                found, _acts(bundle.params, saes, jnp.asarray(tokens), cfg=bundle.cfg, names=names), strict=True
            ):
                acts = np.where(there[..., None], np.asarray(acts)[: len(chosen)], 0)
                story, pos, feature = np.nonzero(acts)
                kept.append((chosen[story] * stride + pos, feature, acts[story, pos, feature]))
            bar.update(task, advance=len(chosen))
    source, target = (
        _matrix(parts, len(stories) * stride, saes[name].cfg.d_sae) for parts, name in zip(found, names, strict=True)
    )
    return Activity(stories, stride, np.sort(np.concatenate(counted)), source, target)


def _matrix(parts: list, rows: int, d_sae: int) -> sparse.csc_array:
    row, feature, value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    matrix = sparse.csc_array((value, (row, feature)), shape=(rows, d_sae))
    matrix.sort_indices()
    return matrix


@partial(jax.jit, static_argnames=("cfg", "names"))
def _acts(params, saes, tokens: Int[Array, "batch pos"], *, cfg, names: tuple[str, str]) -> list[Array]:
    run = intervene(params, cfg, saes, tokens, read=names, logits_at=None)
    return [run.feature_acts[name] for name in names]
