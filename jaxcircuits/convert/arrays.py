"""An autoencoder from its arrays, whatever its architecture: checked, and brought into the form that all have here."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxcircuits.config import SAEConfig
from jaxcircuits.convert.format import Options, checked_tensors
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE
from jaxcircuits.tensors import sae_shapes
from jaxcircuits.types import SAEWeights

ARCHITECTURES = {
    "relu": "relu",
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "groupmax": "groupmax",
    "batchtopk": "jumprelu",
    "gated": "jumprelu",
}
"""What an autoencoder may be called, and the activation that computes it here."""
_GATE = ("b_gate", "r_mag", "b_mag")


def sae_from_arrays(
    *,
    W_enc: ArrayLike,
    W_dec: ArrayLike,
    b_dec: ArrayLike,
    hook_name: str,
    b_enc: ArrayLike | None = None,
    architecture: str = "relu",
    threshold: ArrayLike | None = None,
    k: int | None = None,
    b_gate: ArrayLike | None = None,
    r_mag: ArrayLike | None = None,
    b_mag: ArrayLike | None = None,
    W_skip: ArrayLike | None = None,
    subtract_b_dec: bool | None = None,
    normalization: str = "none",
    hook_out: str | None = None,
    dtype=jnp.float32,
) -> SAE:
    """An autoencoder from arrays that you have, of any origin.

    Its features are `act(x~ W_enc + b_enc)` with `x~` the input, normalised and less `b_dec` where asked, and its
    output is `features W_dec + b_dec`, normalisation undone, plus `x W_skip` where there is one.

    Args:
        W_enc: `[d_in, d_sae]`. A square one cannot be told from its transpose: take care.
        W_dec: `[d_sae, d_out]`; `d_out` is `d_in` but for a transcoder.
        b_dec: `[d_out]`.
        hook_name: TransformerLens' name of the hook point that it reads.
        b_enc: `[d_sae]`; a gated one has `b_gate`, `r_mag` and `b_mag` instead.
        architecture: `relu` (or `standard`), `jumprelu`, `topk`, `groupmax`, `batchtopk` or `gated`.
        threshold: Of a `jumprelu`, `[d_sae]`; of a `batchtopk`, one number. What exceeds it is on.
        k: Features that a `topk` keeps, or the groups of a `groupmax`.
        b_gate: `[d_sae]`: on where `x~ W_enc + b_gate > 0`.
        r_mag: `[d_sae]`: the value is then `exp(r_mag) x~ W_enc + b_mag`, as far as it is positive.
        b_mag: `[d_sae]`.
        W_skip: `[d_in, d_out]`, of a transcoder.
        subtract_b_dec: Whether the encoder subtracts `b_dec` first; by default, yes but for transcoders.
        normalization: One of `jaxcircuits.config.NORMALIZATIONS`.
        hook_out: The hook point that a transcoder writes.
        dtype: What to compute in.

    Raises:
        InputError: An array is missing, too many, transposed, of another shape, or holds NaN or Inf; or a word is
            unknown.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from jaxcircuits import encode, sae_from_arrays
    >>> sae = sae_from_arrays(W_enc=np.eye(2, 3), b_enc=np.zeros(3), W_dec=np.eye(3, 2), b_dec=np.zeros(2),
    ...     hook_name="blocks.0.hook_mlp_out", architecture="batchtopk", threshold=1.5)
    >>> encode(sae, jnp.array([1.0, 2.0])).tolist()
    [0.0, 2.0, 0.0]
    """
    given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold, "W_skip": W_skip}
    given |= {"b_gate": b_gate, "r_mag": r_mag, "b_mag": b_mag}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    arrays = {name: a.astype(np.float64) if a.dtype.kind in "iu" else a for name, a in arrays.items()}
    sae = assemble(
        arrays,
        hook_name,
        Options(),
        "sae_from_arrays",
        architecture=architecture,
        k=k,
        subtract_b_dec=hook_out is None if subtract_b_dec is None else subtract_b_dec,
        normalization=normalization,
        hook_out=hook_out,
        origin=f"arrays, {architecture}",
    )
    return SAE(jax.tree.map(lambda w: jnp.asarray(w, dtype), sae.weights), sae.cfg)


def assemble(
    arrays: Mapping[str, np.ndarray],
    hook_name: str,
    options: Options,
    where: str,
    *,
    architecture: str = "relu",
    k: int | None = None,
    subtract_b_dec: bool = True,
    normalization: str = "none",
    hook_out: str | None = None,
    scaled: bool = False,
    origin: str = "",
) -> SAE:
    """The same from what a file holds: arrays by the names of `sae_from_arrays`, each in the dtype it is stored in.

    Args:
        arrays: The arrays.
        hook_name: The hook point that it reads.
        options: What the user asked for.
        where: What to call the file in an error.
        architecture: As of `sae_from_arrays`, like the rest.
        k: Its `k`.
        subtract_b_dec: Whether the encoder subtracts `b_dec`.
        normalization: What is done to the input first.
        hook_out: The hook point that a transcoder writes.
        scaled: Whether pre-activations count times the norm of their decoder row, by which the output is divided again.
        origin: Format and architecture, for people.

    Raises:
        InputError: As `sae_from_arrays`; it begins with `where`.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"{where}: the architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}.")
    if "W_skip" in arrays and hook_out is None:
        raise InputError(f"{where}: W_skip belongs to a transcoder, which names the hook point it writes.")
    d_in, d_sae, d_out = _widths(arrays, architecture, hook_out, where)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= {name: (d_sae,) for name in (_GATE if architecture == "gated" else ("b_enc",))}
    shapes |= {"jumprelu": {"threshold": (d_sae,)}, "batchtopk": {"threshold": ()}}.get(architecture, {})
    if "W_skip" in arrays:
        shapes["W_skip"] = (d_in, d_out)
    for name, shape in shapes.items():
        if name in arrays and len(shape) == 2 and arrays[name].shape == shape[::-1] != shape:
            raise InputError(f"{where}: {name} must have shape {list(shape)}, got its transpose; transpose it.")
    tensors = checked_tensors(arrays, shapes, options._replace(dtype=None), where)
    if scaled:
        tensors = _decoder_norms_folded(tensors)
    if architecture == "gated":
        tensors = _ungated(tensors)
    elif architecture == "batchtopk":
        tensors["threshold"] = np.full(d_sae, tensors["threshold"], at_least_float32(tensors["threshold"]))
    try:
        cfg = SAEConfig(
            d_in,
            d_sae,
            hook_name,
            activation=ARCHITECTURES[architecture],
            subtract_b_dec=subtract_b_dec,
            k=k,
            normalization=normalization,
            hook_out=hook_out,
            d_out=d_out if hook_out is not None and d_out != d_in else None,
            skip="W_skip" in arrays,
            origin=origin,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    tensors = checked_tensors(tensors, sae_shapes(cfg), options, where)
    return SAE(SAEWeights(**tensors), cfg)  # pyright: ignore[reportArgumentType]


def _widths(arrays: Mapping[str, np.ndarray], architecture: str, hook_out: str | None, where: str) -> tuple[int, ...]:
    """`d_in, d_sae, d_out`: from the biases, which have one axis, so that a transposed matrix is seen as one."""
    bias = "b_gate" if architecture == "gated" else "b_enc"
    for name, dims in ((bias, 1), ("b_dec", 1), ("W_enc", 2)):
        if name not in arrays or arrays[name].ndim != dims or 0 in arrays[name].shape:
            raise InputError(
                f"{where}: the tensor {name} is missing or has not {dims} {'axis' if dims == 1 else 'axes'}."
            )
    d_sae, d_out = len(arrays[bias]), len(arrays["b_dec"])
    if hook_out is None:
        return d_out, d_sae, d_out
    rows, columns = arrays["W_enc"].shape
    return columns if rows == d_sae != columns else rows, d_sae, d_out


def at_least_float32(*arrays: np.ndarray) -> Any:
    """The dtype for what is computed from these: rounding a threshold once more to half precision would move it."""
    return np.result_type(np.float32, *(a.dtype for a in arrays if a.dtype == np.float64))


def _ungated(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A gated autoencoder's tensors as those of the JumpReLU that it equals (see `sae.activations`)."""
    W_enc, b_gate, b_mag, r_mag = (tensors[name].astype(np.float64) for name in ("W_enc", "b_gate", "b_mag", "r_mag"))
    scale = np.exp(r_mag)
    changed = {"W_enc": W_enc * scale, "b_enc": b_mag, "threshold": b_mag - b_gate * scale}
    dtype = at_least_float32(tensors["W_enc"])
    kept = {name: tensors[name] for name in ("W_dec", "b_dec", "W_skip") if name in tensors}
    return {**kept, **{name: tensor.astype(dtype) for name, tensor in changed.items()}}


def _decoder_norms_folded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder times the norms of the decoder's rows, and these divided by them."""
    names = ("W_enc", "b_enc", "W_dec")
    W_enc, b_enc, W_dec = (tensors[name].astype(np.float64) for name in names)
    norm = np.linalg.norm(W_dec, axis=-1)
    changed = (W_enc * norm, b_enc * norm, W_dec / np.where(norm == 0, 1, norm)[:, None])
    dtype = at_least_float32(*(tensors[name] for name in names))
    return {**tensors, **{name: tensor.astype(dtype) for name, tensor in zip(names, changed, strict=True)}}
