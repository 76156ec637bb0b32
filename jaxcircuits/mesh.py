"""Every sharding decision: which array is cut along which axis of the devices.

Devices form a grid. Along `data` lie different prompts; along `model` the features of the autoencoders and the words of
the vocabulary, for weights that are too large for one device. A process uses its own devices only: processes share a
corpus by parts (`bulk`), not by arrays, so that nothing waits for another machine while it computes.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcircuits.errors import InputError

DATA, MODEL = "data", "model"

WEIGHTS = {
    "W_E": P(MODEL, None),
    "W_U": P(None, MODEL),
    "b_U": P(MODEL),
    "W_enc": P(None, MODEL),
    "b_enc": P(MODEL),
    "threshold": P(MODEL),
    "W_dec": P(MODEL, None),
    "directions": P(MODEL, None),
    "W_enc_rows": P(MODEL, None),
    "E": P(MODEL, None),
    "writes": P(MODEL, None),
    "reads": P(MODEL, None),
    "stage_reads": P(MODEL, None),
}
"""Arrays that are cut, by the name of their field; all others are on every device whole."""


def make_mesh(data: int | None = None, model: int = 1) -> Mesh | None:
    """A grid of this process's devices; `None` where that is one device.

    Args:
        data: Devices along the prompts; by default all that `model` leaves.
        model: Devices along features and vocabulary.

    Raises:
        InputError: There are not as many devices.

    >>> from jaxcircuits.mesh import make_mesh
    >>> make_mesh(1, 1) is None
    True
    """
    devices = jax.local_devices()
    data = max(1, len(devices) // model) if data is None else data
    if data * model > len(devices):
        raise InputError(
            f"a mesh of {data}x{model} takes {data * model} devices, but this process has {len(devices)}; "
            "ask for a smaller one."
        )
    if data * model == 1:
        return None
    return Mesh(np.array(devices[: data * model]).reshape(data, model), (DATA, MODEL))


def shape_of(mesh: Mesh | None) -> dict[str, int]:
    """Devices along each axis."""
    return {DATA: 1, MODEL: 1} if mesh is None else dict(mesh.shape)


def place_weights(tree: Any, mesh: Mesh | None) -> Any:
    """Puts weights and tables where `WEIGHTS` says; one that does not divide evenly is on every device whole."""
    if mesh is None:
        return tree

    def place(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):  # what only the host reads
            return leaf
        name = getattr(path[-1], "name", "") if path else ""
        return jax.device_put(leaf, _sharding(mesh, WEIGHTS.get(name, P()), leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def place_batch(tree: Any, mesh: Mesh | None) -> Any:
    """Puts what a batch brings: its first axis along `data`."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(leaf, _sharding(mesh, P(DATA), leaf.shape)), tree)


def batch_size(batch: int, prompts: int, mesh: Mesh | None) -> int:
    """Prompts a batch where one device takes `batch`: as many on each, or few where there are few."""
    data = shape_of(mesh)[DATA]
    return data * min(batch, -(-prompts // data))


def _sharding(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> NamedSharding:
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    even = all(n % size == 0 for n, size in zip(shape, sizes, strict=False))
    return NamedSharding(mesh, spec if even else P())
