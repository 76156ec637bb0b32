"""The pair experiment: weights alone pick the pairs; on the target's strongest examples the source is ablated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.interventions import Change, intervene
from jaxcircuits.model import side_by_side
from jaxcircuits.progress import progress
from jaxcircuits.sae import encode
from jaxcircuits.validation.activity import Activity
from jaxcircuits.validation.predictors import Predictors

MEASURED = ("target_act", "target_act_source_ablated", "loss", "loss_source_ablated", "loss_target_ablated")
BLOCK = 1024
"""Source features whose cosines are held at a time."""
AT_ONCE = 16


def largest_cosines(predictors: Predictors, n: int) -> Columns:
    """The pairs of largest cosine among all features of both autoencoders: `source_feature`, `target_feature`.

    Args:
        predictors: Of the two autoencoders.
        n: How many.
    """
    d_source, d_target = (len(table) for table in predictors.directions)
    best = np.zeros(0), np.zeros(0, np.int64)
    for start in range(0, d_source, BLOCK):
        cosines = predictors.cosines(slice(start, start + BLOCK)).reshape(-1)
        values = np.concatenate([best[0], cosines])
        index = np.concatenate([best[1], np.arange(len(cosines)) + start * d_target])
        order = np.argpartition(-values, min(n, len(values)) - 1)[:n]
        best = values[order], index[order]
    order = np.lexsort((best[1], -best[0]))
    source, target = np.divmod(best[1][order], d_target)
    return {"source_feature": source, "target_feature": target, "cosine_similarity": best[0][order]}


def ablate_pairs(
    bundle: Bundle,
    pair: Pair,
    activity: Activity,
    predictors: Predictors,
    n: int,
    *,
    examples: int = 100,
    quiet: bool = True,
) -> Columns:
    """For the pairs of largest cosine: the target's activation and the loss, before and after either is ablated.

    Args:
        bundle: Model and autoencoders.
        pair: Which two.
        activity: Of the stories.
        predictors: Of the same stories.
        n: How many pairs.
        examples: The target's strongest, one a story, where a next token is known; fewer where there are fewer.
        quiet: No progress bar.

    Returns:
        A row a pair: `source_feature`, `target_feature`, `cosine_similarity`, the number of `examples`, the share of
        them where the source is active (`source_active`), and means over them: the target's activation, the same with
        the source ablated at that position, the loss of the next token in nats, the same with the source and with the
        target ablated. NaN where there is no example.

    Raises:
        InputError: Fewer than one pair is asked for.
    """
    if n < 1:
        raise InputError(f"the number of pairs must be at least 1, got {n}.")
    pairs = largest_cosines(predictors, n)
    by_story: dict[int, list[tuple[int, int]]] = {}
    for number, target in enumerate(pairs["target_feature"].tolist()):
        stories, positions, _ = activity.strongest(target)
        known = positions + 1 < np.array([len(activity.stories[s]) for s in stories], np.int64)
        for story, pos in zip(stories[known][:examples].tolist(), positions[known][:examples].tolist(), strict=True):
            by_story.setdefault(story, []).append((number, pos))
    sums = np.zeros((len(pairs["source_feature"]), len(MEASURED)))
    counts, active = np.zeros((2, len(sums)))
    names = (pair.source_name, pair.target_name)
    saes = {name: bundle.saes[name] for name in names}
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        task = bar.add_task("pairs", total=len(by_story))
        for story, places in by_story.items():
            ids = activity.stories[story]
            tokens = np.zeros(predictors.padded(story), np.int32)
            tokens[: len(ids)] = ids
            for start in range(0, len(places), AT_ONCE):
                number, pos = np.array(places[start : start + AT_ONCE]).T
                ends = np.stack([pos, pairs["source_feature"][number], pairs["target_feature"][number], ids[pos + 1]])
                room = np.pad(ends, ((0, 0), (0, AT_ONCE - len(pos))), mode="edge").astype(np.int32)
                run = _ablated(
                    bundle.params, saes, jnp.asarray(tokens), jnp.asarray(room.T), cfg=bundle.cfg, names=names
                )
                found, source_act = (np.asarray(x, np.float64)[: len(pos)] for x in run)
                np.add.at(sums, number, found)
                np.add.at(counts, number, 1)
                np.add.at(active, number, source_act > 0)
            bar.update(task, advance=1)
    with np.errstate(invalid="ignore"):
        means = dict(zip(MEASURED, (sums / counts[:, None]).T, strict=True))
        return {**pairs, "examples": counts.astype(np.int64), "source_active": active / counts, **means}


@partial(jax.jit, static_argnames=("cfg", "names"))
def _ablated(
    params: Any,
    saes: Any,
    tokens: Int[Array, "pos"],
    places: Int[Array, "n 4"],
    *,
    cfg: Any,
    names: tuple[str, str],
) -> tuple[Float[Array, "n 5"], Float[Array, "n"]]:
    """`MEASURED` at each place (position, source, target, next token), and the source's activation."""
    (source, target), hooks = names, [saes[name].cfg.hook_name for name in names]

    def one(place: Int[Array, "4"]) -> tuple[Float[Array, "5"], Float[Array, ""]]:
        at, feature, driven, following = place

        def run(*changes: Change) -> tuple[Array, Array, Array]:
            found = intervene(params, cfg, saes, tokens, changes, taps=hooks, logits_at=at[None])
            acts = [
                encode(saes[name], side_by_side(hook, found.acts[hook])[at])[i]
                for name, hook, i in zip(names, hooks, (feature, driven), strict=True)
            ]
            assert found.logits is not None
            return acts[0], acts[1], -jax.nn.log_softmax(found.logits[0])[following]

        def ablated(name: str, which: Int[Array, ""]) -> tuple[Array, Array, Array]:
            return run(Change(name, "set", which, jnp.zeros((), params.W_E.dtype), at[None]))

        source_act, act, loss = run()
        _, left, source_loss = ablated(source, feature)
        target_loss = ablated(target, driven)[2]
        return jnp.stack([act, left, loss, source_loss, target_loss]), source_act

    return jax.vmap(one)(places)
