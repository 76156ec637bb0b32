"""Tables of what weights alone decide, computed once for a pair of SAEs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcircuits.attribution.blocks import heads_of
from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.model import process_weights


class StreamTables(NamedTuple):
    """Where sources enter the residual stream along fixed directions: what leads to attention and from it."""

    written_by: Float[Array, "d_in d_model"] | None  # from the source hook; `None` where that is in the stream itself
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
    """Of a pair of SAEs, wherever they sit; more where there are closed forms."""

    directions: Float[Array, "d_sae d_in"]  # what one unit of a source adds to its hook
    W_enc_rows: Float[Array, "d_sae_target d_in_target"]
    stream: StreamTables | None
    products: WeightProducts | None

    @property
    def writes(self) -> Float[Array, "d_sae d_model"]:
        """What one unit of a source adds to the residual stream, on processed weights."""
        assert self.stream is not None
        assert self.products is not None
        return self.stream.E if self.products.writes is None else self.products.writes


def make_tables(bundle: Bundle, pair: Pair, *, neurons: bool) -> Tables:
    """The tables of a pair; sources are its features, or the hook's own `neurons`."""
    problem, source, target = pair.problem, pair.source.weights, pair.target.weights
    directions = jnp.eye(pair.source.cfg.width_written, dtype=source.W_dec.dtype) if neurons else source.W_dec
    tables = Tables(directions, jnp.asarray(target.W_enc.T), None, None)
    if problem.closed_form is None and not problem.adjacent_mlps:
        return tables
    entry, params, layer = problem.entry, bundle.params, problem.target_block
    assert entry is not None
    written, W_in = entry.matrix(params), params.blocks[layer].mlp.W_in
    E = directions if written is None else directions @ written
    tables = tables._replace(stream=StreamTables(written, E, heads_of(params.blocks[layer].attn)))
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
