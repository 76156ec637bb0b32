"""From prompts to edges: run the model, choose sources and targets, differentiate, list.

1. Pad prompts of like length into a batch, run the model up to the target hook, encode both hooks.
2. Choose sources and targets on the host; capacities are the next power of two, so nothing is ever cut.
3. Differentiate in chunks of targets, by the method asked for.
4. List every pair of a target and a source as an edge.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.attribution.edges import EDGE_COLUMNS, TARGET_COLUMNS, Columns, concatenate
from jaxcircuits.attribution.problem import Problem, Settings, resolve, source_side, target_side
from jaxcircuits.attribution.reference import hook_gradients, project_all, project_same
from jaxcircuits.attribution.selection import (
    Sources,
    Targets,
    bucket,
    length_bucket,
    named_targets,
    select_sources,
    select_targets,
)
from jaxcircuits.attribution.structured import Segment, dots, segment_of, structured
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.model import process_weights
from jaxcircuits.sae import SAE, encode, pre_activations
from jaxcircuits.sae.activations import activation

TOKENS_A_BATCH = 4096
REFERENCE_CHUNK = 32  # targets differentiated at once: each holds a gradient [pos, d_in]
STRUCTURED_CHUNK_BYTES = 1 << 28  # of gathered table rows, the largest array of a chunk


class Passed(NamedTuple):
    """What a forward pass leaves for one batch of padded sequences; `segment` only for the structured method."""

    h: Float[Array, "batch pos d_in"]
    source_acts: Float[Array, "batch pos d_sae"]
    target_pre_acts: Float[Array, "batch pos d_sae_target"]
    segment: Segment | None


@partial(jax.jit, static_argnames=("problem", "neurons", "keep_segment"))
def run_model(
    params: Any,
    source: SAE,
    target: SAE,
    tokens: Int[Array, "batch pos"],
    *,
    problem: Problem,
    neurons: bool,
    keep_segment: bool,
) -> Passed:
    """The shared forward pass: no unembedding, nothing after the target hook."""

    def one(tokens):
        arriving, h = source_side(problem, params, source, tokens)
        acts = h if neurons else encode(source, arriving)
        if keep_segment:
            segment = segment_of(problem, params, target, h, tokens)
            return Passed(h, acts, segment.target_pre_acts, segment)
        at_target, _ = target_side(problem, params, h, tokens)
        return Passed(h, acts, pre_activations(target, at_target), None)

    return jax.vmap(one)(tokens)


class Tables(NamedTuple):
    """What weights alone decide, computed once for a pair of SAEs."""

    directions: Float[Array, "d_sae d_in"]  # what one unit of a source adds to its hook
    E: Float[Array, "d_sae d_model"] | None  # ... to the residual stream
    W_enc_rows: Float[Array, "d_sae_target d_mlp"]
    reads: Float[Array, "d_sae_target d_model"] | None  # what a target reads there if norms and GELU were the identity
    writes: Float[Array, "d_sae d_model"] | None  # E on processed weights, of which alone cosines speak
    writes_norm: Float[np.ndarray, "d_sae"]
    reads_norm: Float[np.ndarray, "d_sae_target"]


class Chosen(NamedTuple):
    """One sequence's sources and targets with their activations."""

    row: int
    sources: Sources
    targets: Targets
    source_acts: Float[np.ndarray, "pos d_sae"]
    pre_acts: Float[np.ndarray, "target"]
    acts: Float[np.ndarray, "target"]


class Engine:
    """Attribution between two SAEs of a bundle; holds what all prompts share.

    Args:
        bundle: Model and SAEs.
        settings: What to attribute to what.

    Raises:
        InputError: The settings do not fit the bundle, or ask of a method what it does not cover.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.pair = resolve(bundle, settings)
        self.problem = self.pair.problem
        if settings.method == "structured" and not self.problem.adjacent_mlps:
            raise InputError(
                "method 'structured' covers mlp.hook_post of adjacent layers, got "
                f"{self.problem.source_hook} and {self.problem.target_hook}; use --method reference."
            )
        self.method = settings.method
        if settings.method == "auto":
            self.method = "structured" if self.problem.adjacent_mlps else "reference"
        with jax.default_matmul_precision(settings.precision):
            self.tables = self._tables()

    def description(self) -> dict[str, Any]:
        """The settings as asked for, and what was used where they left a choice."""
        used = {"source": self.pair.source_name, "target": self.pair.target_name, "method": self.method}
        hooks = {"source_hook": self.problem.source_hook, "target_hook": self.problem.target_hook}
        return {**asdict(self.settings), **used, **hooks, "dtype": str(self.bundle.params.W_E.dtype)}

    def _tables(self) -> Tables:
        source, target = self.pair.source.weights, self.pair.target.weights
        neurons = self.settings.source_basis == "neurons"
        d_in = self.pair.source.cfg.d_in
        directions = jnp.eye(d_in, dtype=source.W_dec.dtype) if neurons else source.W_dec
        W_enc_rows = jnp.asarray(target.W_enc.T)
        if not self.problem.adjacent_mlps:
            none = np.zeros(0, np.float32)
            return Tables(directions, None, W_enc_rows, None, None, none, none)
        params = self.bundle.params
        layer = int(self.problem.target_hook.split(".")[1])
        E = directions @ params.blocks[layer - 1].mlp.W_out
        # Cosines mean something on processed weights only: the norm's scale folded in, what it ignores gone.
        processed = process_weights(params, self.bundle.cfg.processing) if params.ln_final is not None else params
        reads = (processed.blocks[layer].mlp.W_in @ target.W_enc).T
        writes = directions @ processed.blocks[layer - 1].mlp.W_out
        return Tables(
            directions,
            E,
            W_enc_rows,
            reads,
            writes,
            np.linalg.norm(np.asarray(writes), axis=1),
            np.linalg.norm(np.asarray(reads), axis=1),
        )

    def run(
        self,
        prompts: Sequence[tuple[int, Int[np.ndarray, "_pos"]]],
        targets: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[Columns, Columns]:
        """Attributes some prompts.

        Args:
            prompts: Row number and token ids of each.
            targets: `(position, feature)` to attribute in each prompt; by default every active one.

        Returns:
            Edges and targets in the order of the prompts, then of target position, target feature, source position
            and source feature.

        Raises:
            InputError: A prompt is empty, too long, or holds an unknown token id, or a named target does not exist.
        """
        for row, tokens in prompts:
            check_tokens(tokens, self.bundle, row)
        edges: dict[int, Columns] = {}
        listed: dict[int, Columns] = {}
        with jax.default_matmul_precision(self.settings.precision):
            for batch in self._batches(prompts):
                for row, (e, t) in self._run_batch(batch, targets):
                    edges[row], listed[row] = e, t
        rows = [row for row, _ in prompts]
        return concatenate((edges[r] for r in rows), EDGE_COLUMNS), concatenate(
            (listed[r] for r in rows), TARGET_COLUMNS
        )

    def _batches(self, prompts: Sequence[tuple[int, np.ndarray]]) -> Iterator[list[tuple[int, np.ndarray]]]:
        by_length: dict[int, list[tuple[int, np.ndarray]]] = {}
        for row, tokens in prompts:
            by_length.setdefault(length_bucket(len(tokens), self.bundle.cfg.n_ctx), []).append((row, tokens))
        for length, members in sorted(by_length.items()):
            size = max(1, TOKENS_A_BATCH // length)
            for i in range(0, len(members), size):
                yield members[i : i + size]

    def _run_batch(
        self, prompts: list[tuple[int, np.ndarray]], named: Sequence[tuple[int, int]] | None
    ) -> Iterator[tuple[int, tuple[Columns, Columns]]]:
        length = length_bucket(max(len(t) for _, t in prompts), self.bundle.cfg.n_ctx)
        size = min(bucket(len(prompts), 1), max(1, TOKENS_A_BATCH // length))
        tokens = np.zeros((size, length), np.int32)
        for i, (_, ids) in enumerate(prompts):
            tokens[i, : len(ids)] = ids
        passed = run_model(
            self.bundle.params,
            self.pair.source,
            self.pair.target,
            jnp.asarray(tokens),
            problem=self.problem,
            neurons=self.settings.source_basis == "neurons",
            keep_segment=self.method == "structured",
        )
        source_acts = np.asarray(passed.source_acts)
        pre_acts = np.asarray(passed.target_pre_acts)
        chosen = [self._choose(row, ids, source_acts[i], pre_acts[i], named) for i, (row, ids) in enumerate(prompts)]
        attribute = self._structured if self.method == "structured" else self._reference
        parts: list[list[tuple[Columns, Columns]]] = [[] for _ in prompts]
        for i, part in attribute(chosen, jnp.asarray(tokens), passed):
            parts[i].append(part)
        for c, found in zip(chosen, parts, strict=True):
            yield (
                c.row,
                (
                    concatenate((e for e, _ in found), EDGE_COLUMNS),
                    concatenate((t for _, t in found), TARGET_COLUMNS),
                ),
            )

    def _choose(
        self,
        row: int,
        ids: np.ndarray,
        source_acts: np.ndarray,
        pre_acts: np.ndarray,
        named: Sequence[tuple[int, int]] | None,
    ) -> Chosen:
        n = len(ids)
        counted = self.counted(ids)
        acts = np.asarray(activation(self.pair.target.cfg.activation).apply(jnp.asarray(pre_acts[:n])))
        quantity = acts if self.settings.target_quantity == "activation" else pre_acts[:n]
        if named is not None:
            targets = named_targets(named, self.pair.target.cfg.d_sae, counted)
        else:
            targets = select_targets(quantity, self.settings.target_threshold, counted)
        padded = np.zeros(len(source_acts), bool)
        padded[:n] = counted
        sources = select_sources(source_acts, self.settings.source_threshold, padded)
        at = (targets.pos, targets.feature)
        return Chosen(row, sources, targets, source_acts, pre_acts[:n][at], acts[at])

    def counted(self, ids: Int[np.ndarray, "pos"]) -> Bool[np.ndarray, "pos"]:
        """Which positions count as source and target: all but a BOS at position 0, unless that is asked for."""
        counted = np.ones(len(ids), bool)
        if not self.settings.include_bos and ids[0] == self.bundle.cfg.bos_token_id:
            counted[0] = False
        return counted

    def _structured(
        self, chosen: list[Chosen], tokens: Int[Array, "batch pos"], passed: Passed
    ) -> Iterator[tuple[int, tuple[Columns, Columns]]]:
        batch, length = tokens.shape
        everywhere = self.settings.positions == "all"
        slots = max(c.sources.feature.shape[1] for c in chosen)
        listed = np.zeros((batch, length, slots), np.int32)
        for i, c in enumerate(chosen):
            listed[i, :, : c.sources.feature.shape[1]] = c.sources.feature
        most = max(len(c.targets.pos) for c in chosen)
        row_bytes = 4 * batch * slots * max(self.bundle.cfg.d_model, length if everywhere else 1)
        chunk = min(bucket(most), max(8, bucket(STRUCTURED_CHUNK_BYTES // row_bytes + 1) // 2))
        assert self.tables.E is not None
        for start in range(0, most, chunk):
            pos = np.zeros((batch, chunk), np.int32)
            feature = np.zeros((batch, chunk), np.int32)
            for i, c in enumerate(chosen):
                part = slice(start, start + chunk)
                pos[i, : len(c.targets.pos[part])] = c.targets.pos[part]
                feature[i, : len(c.targets.pos[part])] = c.targets.feature[part]
            gradients = structured(
                self.bundle.params,
                self.pair.target,
                self.tables.W_enc_rows,
                self.tables.E,
                passed.segment,  # pyright: ignore[reportArgumentType]
                jnp.asarray(pos),
                jnp.asarray(feature),
                jnp.asarray(listed),
                problem=self.problem,
                everywhere=everywhere,
            )
            virtual = self._virtual_weights(pos, feature, listed)
            gradients = np.asarray(gradients)
            for i, c in enumerate(chosen):
                n = len(c.targets.pos[start : start + chunk])
                if n:
                    weights = None if virtual is None else virtual[i, :n]
                    yield i, self._list(c, slice(start, start + n), gradients[i, :n], weights)

    def _reference(
        self, chosen: list[Chosen], tokens: Int[Array, "batch pos"], passed: Passed
    ) -> Iterator[tuple[int, tuple[Columns, Columns]]]:
        for i, c in enumerate(chosen):
            listed = jnp.asarray(c.sources.feature)
            for start in range(0, len(c.targets.pos), REFERENCE_CHUNK):
                part = slice(start, start + REFERENCE_CHUNK)
                n = len(c.targets.pos[part])
                pos, feature = np.zeros((2, REFERENCE_CHUNK), np.int32)
                pos[:n], feature[:n] = c.targets.pos[part], c.targets.feature[part]
                at_hook = hook_gradients(
                    self.bundle.params,
                    self.pair.target,
                    tokens[i],
                    passed.h[i],
                    jnp.asarray(pos),
                    jnp.asarray(feature),
                    problem=self.problem,
                )
                if self.settings.positions == "all":
                    gradients = project_all(at_hook, self.tables.directions, listed)
                else:
                    gradients = project_same(at_hook, self.tables.directions, jnp.asarray(pos), listed)
                virtual = self._virtual_weights(pos[None], feature[None], np.asarray(c.sources.feature)[None])
                weights = None if virtual is None else virtual[0, :n]
                yield i, self._list(c, slice(start, start + n), np.asarray(gradients)[:n], weights)

    def _virtual_weights(
        self,
        pos: Int[np.ndarray, "batch target"],
        feature: Int[np.ndarray, "batch target"],
        listed: Int[np.ndarray, "batch pos slot"],
    ) -> Float[np.ndarray, "batch target slot"] | None:
        if self.tables.writes is None or self.tables.reads is None:
            return None
        return np.asarray(
            _virtual_weights(
                self.tables.writes, self.tables.reads, jnp.asarray(pos), jnp.asarray(feature), jnp.asarray(listed)
            )
        )

    def _list(
        self,
        c: Chosen,
        part: slice,
        gradients: Float[np.ndarray, "target *pos slot"],
        virtual: Float[np.ndarray, "target slot"] | None,
    ) -> tuple[Columns, Columns]:
        """Every pair of a target and a source that counts, as edges."""
        pos, feature = c.targets.pos[part], c.targets.feature[part]
        valid = c.sources.valid
        if gradients.ndim == 2:
            target, slot = np.nonzero(valid[pos])
            source_pos = pos[target]
            gradient = gradients[target, slot]
        else:
            causal = np.arange(valid.shape[0]) <= pos[:, None]
            target, source_pos, slot = np.nonzero(valid[None] & causal[:, :, None])
            gradient = gradients[target, source_pos, slot]
        source = np.asarray(c.sources.feature)[source_pos, slot]
        source_act = c.source_acts[source_pos, source]
        edges: Columns = {
            "prompt": np.full(len(target), c.row, np.int32),
            "target_pos": pos[target],
            "target_feature": feature[target],
            "source_pos": source_pos.astype(np.int32),
            "source_feature": source.astype(np.int32),
            "gradient": gradient,
            "attribution": gradient * source_act,
            "source_act": source_act,
            "target_act": c.acts[part][target],
            **self._weight_columns(virtual, target, slot, source_pos == pos[target], source, feature[target]),
        }
        kept = np.ones(len(target), bool)
        if self.settings.top_n is not None:
            kept = _top_n(target, np.abs(edges["attribution"]), self.settings.top_n)
        n = len(pos)
        targets: Columns = {
            "prompt": np.full(n, c.row, np.int32),
            "target_pos": pos,
            "target_feature": feature,
            "activation": c.acts[part],
            "pre_activation": c.pre_acts[part],
            "edges": np.bincount(target[kept], minlength=n),
            "edges_cut": np.bincount(target[~kept], minlength=n),
            "attribution_sum": np.bincount(target[kept], edges["attribution"][kept], n),
            "attribution_cut": np.bincount(target[~kept], edges["attribution"][~kept], n),
        }
        return {name: values[kept] for name, values in edges.items()}, targets

    def _weight_columns(
        self,
        virtual: np.ndarray | None,
        target: np.ndarray,
        slot: np.ndarray,
        same: np.ndarray,
        source: np.ndarray,
        feature: np.ndarray,
    ) -> Columns:
        if virtual is None:
            return dict.fromkeys(("cosine_similarity", "virtual_weight"), np.full(len(target), np.nan, np.float32))
        weight = np.where(same, virtual[target, slot], np.nan)
        norms = self.tables.writes_norm[source] * self.tables.reads_norm[feature]
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(norms > 0, weight / norms, np.nan)  # no direction, no angle
        return {"cosine_similarity": cosine, "virtual_weight": weight}


@jax.jit
def _virtual_weights(
    writes: Float[Array, "d_sae d_model"],
    reads: Float[Array, "d_sae_target d_model"],
    pos: Int[Array, "batch target"],
    feature: Int[Array, "batch target"],
    listed: Int[Array, "batch pos slot"],
) -> Float[Array, "batch target slot"]:
    return jax.vmap(lambda p, f, s: dots(reads[f][:, None], writes, p, s)[0])(pos, feature, listed)


def _top_n(target: Int[np.ndarray, "edge"], size: Float[np.ndarray, "edge"], n: int) -> Bool[np.ndarray, "edge"]:
    """Marks each target's `n` largest edges; ties go to the earlier one. `target` is ascending."""
    order = np.lexsort((np.arange(len(target)), -size, target))
    start = np.searchsorted(target, target[order])
    kept = np.zeros(len(target), bool)
    kept[order] = np.arange(len(target)) - start < n
    return kept


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
