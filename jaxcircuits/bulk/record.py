"""What `run.json` says of a job before it starts: by this a second start knows whether it is the same job."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxcircuits.attribution import Engine
from jaxcircuits.attribution.plan import Counts, Plan
from jaxcircuits.attribution.selection import bucket
from jaxcircuits.attribution.task import Shape
from jaxcircuits.bulk.prompts import Prompts
from jaxcircuits.bulk.store import SCHEMA
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.mesh import shape_of

OTHERS = {
    "inputs.corpus_sha256": "another corpus",
    "inputs.prompts_sha256": "other prompts",
    "bundle.sha256": "other weights",
}
"""Words where values would say nothing."""

WHERE = ("bundle.path", "inputs.corpus")
"""Where something lay, which may be elsewhere for the same job."""

PACKAGES = ("jaxcircuits", "jax", "jaxlib", "numpy", "pyarrow")


@dataclass(frozen=True)
class Kept:
    """Which tables a run keeps.

    Attributes:
        edges: Every edge.
        activations: Every active feature of both SAEs.
        statistics: What the edges of each pair of features amount to.

    Targets are kept with edges and with statistics: they say how many edges were cut.
    """

    edges: bool = True
    activations: bool = False
    statistics: bool = False

    @property
    def names(self) -> list[str]:
        """Of the tables, as `run.json` has them."""
        targets = self.edges or self.statistics
        words = {"edges": self.edges, "targets": targets, "activations": self.activations}
        return [name for name, kept in (words | {"statistics": self.statistics}).items() if kept]


def check_kept(kept: Kept, settings: Mapping[str, Any], targets: Sequence[tuple[int, int]] | None) -> None:
    """Refuses to keep nothing, and tables of all features where only some are looked at.

    Raises:
        InputError: See there.
    """
    if not kept.names:
        raise InputError("nothing would be kept; keep edges, activations or statistics.")
    if (kept.activations or kept.statistics) and targets is not None:
        raise InputError("activations and statistics are of all targets, got --targets; leave one of them out.")
    if kept.statistics and settings["source_threshold"] == "all":
        raise InputError("statistics are of active sources, got --source-threshold all; pass --no-statistics.")


def first_record(
    engine: Engine, bundle: Bundle, prompts: Prompts, targets: Sequence[tuple[int, int]] | None, kept: Kept
) -> dict[str, Any]:
    """The record of a job of which nothing is done."""
    here = versions_here()
    record = {
        "schema": SCHEMA,
        "finished": False,
        "settings": engine.description(),
        "targets": None if targets is None else [list(t) for t in targets],
        "kept": kept.names,
        **here,
        "device": here["device"] | {"mesh": shape_of(engine.mesh)},
        "bundle": {"path": None if bundle.path is None else str(bundle.path), "sha256": weight_hashes(bundle)},
        "inputs": prompts.description(),
        "prompts": None,
        "plan": None,
        "files": {},
        "parts": [],
        "sums": [],
    }
    return json.loads(json.dumps(record))


def versions_here() -> dict[str, dict[str, Any]]:
    """What bytes depend on besides the job: versions, device and host."""
    device = jax.local_devices()[0]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "host": {"cores": os.cpu_count(), "xla_flags": os.environ.get("XLA_FLAGS", "")},
    }


def weight_hashes(bundle: Bundle) -> dict[str, str]:
    """Of the bundle's files; of the arrays, where it comes from none."""
    if "sha256" in bundle.manifest:
        return dict(bundle.manifest["sha256"])
    digest = hashlib.sha256()
    weights = (bundle.params, {name: sae.weights for name, sae in bundle.saes.items()})
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return {"arrays": digest.hexdigest()}


def difference(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first thing in which a job differs from the one that a record is of, as words; `None` for the same job."""
    for name in ("settings", "targets", "kept", "inputs", "bundle", "versions", "device"):
        one, other = _flat(name, asked[name]), _flat(name, found[name])
        for key, value in one.items():
            if key not in WHERE and other.get(key) != value:
                return OTHERS.get(key, f"{key} {other.get(key)!r} where this one has {value!r}")
    return None


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {f"{name}.{key}": entry for key, entry in value.items()}


def plan_of(record: Mapping[str, Any]) -> Plan:
    """The plan that a record holds."""
    plan = record["plan"]
    shapes = tuple(Shape(**shape) for shape in plan["shapes"])
    return Plan(plan["memory"], shapes, Counts(**plan["counts"]), plan["prompts_a_part"])


def parts_of(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """First and last prompt, the latter excluded, of each part."""
    number, step = record["prompts"], record["plan"]["prompts_a_part"]
    return [(first, min(first + step, number)) for first in range(0, number, step)]


def fitted(plan: Plan, lengths: Int[np.ndarray, "_n"], data: int) -> Plan:
    """A plan whose batches are no larger than what a part fills: what stays empty is computed all the same.

    Args:
        plan: From the engine.
        lengths: How many prompts have each number of tokens.
        data: Devices along the prompts.
    """
    shapes, shorter = [], 0
    for shape in plan.shapes:
        members = lengths[shorter : shape.length + 1].sum()
        filled = plan.prompts_a_part * members / max(lengths.sum(), 1)
        batch = data * min(shape.batch // data, bucket(int(np.ceil(filled / data)), 1))
        at_once = batch if shape.sequences_at_once == shape.batch else min(batch, shape.sequences_at_once)
        shapes.append(replace(shape, batch=batch, sequences_at_once=at_once))
        shorter = shape.length + 1
    return replace(plan, shapes=tuple(shapes))
