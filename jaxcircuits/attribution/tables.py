"""Tables of what weights alone decide, computed once for a pair of SAEs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcircuits.attribution.problem import Pair, layer_of
from jaxcircuits.bundle import Bundle
from jaxcircuits.model import process_weights


class MLPTables(NamedTuple):
    """Where both hooks are MLPs': what leads to attention and from it."""

    W_out: Float[Array, "d_in d_model"]
    E: Float[Array, "d_sae d_model"]  # what one unit of a source adds to the residual stream
    W_heads: Float[Array, "vqk head d_head d_model"]  # of the target's attention


class WeightProducts(NamedTuple):
    """Where they are of adjacent layers: what weights alone say of a pair. Cosines are of processed weights only."""

    writes: Float[Array, "d_sae d_model"] | None  # `None` where they are `E`: the weights in use are processed
    reads: Float[Array, "d_sae_target d_model"]  # what a target reads if norm and GELU were the identity
    writes_norm: Float[np.ndarray, "d_sae"]
    reads_norm: Float[np.ndarray, "d_sae_target"]
    stage_reads: Float[Array, "d_sae_target d_model"]  # `reads` on the weights that are computed with


class Tables(NamedTuple):
    """Of a pair of SAEs, wherever they sit; more where they sit on MLPs."""

    directions: Float[Array, "d_sae d_in"]  # what one unit of a source adds to its hook
    W_enc_rows: Float[Array, "d_sae_target d_in_target"]
    mlps: MLPTables | None
    products: WeightProducts | None

    @property
    def writes(self) -> Float[Array, "d_sae d_model"]:
        """What one unit of a source adds to the residual stream, on processed weights."""
        assert self.mlps is not None
        assert self.products is not None
        return self.mlps.E if self.products.writes is None else self.products.writes


def make_tables(bundle: Bundle, pair: Pair, *, neurons: bool) -> Tables:
    """The tables of a pair; sources are its features, or the hook's own `neurons`."""
    problem, source, target = pair.problem, pair.source.weights, pair.target.weights
    directions = jnp.eye(pair.source.cfg.d_in, dtype=source.W_dec.dtype) if neurons else source.W_dec
    tables = Tables(directions, jnp.asarray(target.W_enc.T), None, None)
    if not problem.both_mlps:
        return tables
    params, layer = bundle.params, layer_of(problem.target_hook)
    W_out = params.blocks[layer_of(problem.source_hook)].mlp.W_out
    attn, W_in = params.blocks[layer].attn, params.blocks[layer].mlp.W_in
    W_heads = jnp.stack([W.swapaxes(1, 2) for W in (attn.W_V, attn.W_Q, attn.W_K)])
    E = directions @ W_out
    tables = tables._replace(mlps=MLPTables(W_out, E, W_heads))
    if not problem.adjacent_mlps:
        return tables
    stage_reads = reads = (W_in @ target.W_enc).T
    writes = None
    if params.ln_final is not None:
        # Cosines mean something on processed weights only: the norm's scale folded in, what it ignores gone.
        processed = process_weights(params, bundle.cfg.processing)
        reads = (processed.blocks[layer].mlp.W_in @ target.W_enc).T
        writes = directions @ processed.blocks[layer - 1].mlp.W_out
    writes_norm, reads_norm = (
        np.linalg.norm(np.asarray(table), axis=1) for table in (E if writes is None else writes, reads)
    )
    return tables._replace(products=WeightProducts(writes, reads, writes_norm, reads_norm, stage_reads))
