"""Training on all devices of this machine: each has a part of the batch, and all have the same weights."""

from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcircuits.errors import InputError

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Devices:
    """Where batches and weights are put: nowhere in particular on one device."""

    mesh: Mesh | None

    def everywhere(self, tree: Tree) -> Tree:
        """The same weights on each device."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def spread(self, batch: np.ndarray) -> jax.Array | np.ndarray:
        """A batch along its first axis; rows of tokens are filled up with rows that have ended."""
        if self.mesh is None:
            return batch
        missing = -len(batch) % self.mesh.size
        if missing:
            batch = np.concatenate([batch, np.full((missing, *batch.shape[1:]), -1, batch.dtype)])
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec("data")))


def all_devices(batch_tokens: int) -> Devices:
    """All devices of this machine.

    Args:
        batch_tokens: Tokens a step.

    Raises:
        InputError: They cannot share a batch evenly.
    """
    devices = jax.local_devices()
    if batch_tokens % len(devices):
        raise InputError(
            f"batch_tokens must be a multiple of the {len(devices)} devices that share a batch, got {batch_tokens}."
        )
    return Devices(Mesh(np.array(devices), ("data",)) if len(devices) > 1 else None)
