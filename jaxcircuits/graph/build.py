"""`build_graph`: a prompt in, its graph out.

1. One forward pass; active features become nodes (`prompt`), the wanted logits are found (`targets`).
2. Each SAE's features, then the logits, are differentiated in chunks with respect to every factor (`direct`).
3. Derivatives become edges, nothing left out silently (`listing`).
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcircuits.attribution.api import Prompt, tokenized
from jaxcircuits.attribution.problem import PRECISIONS
from jaxcircuits.attribution.prompts import check_tokens
from jaxcircuits.attribution.selection import bucket
from jaxcircuits.bulk.record import weight_hashes
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.graph.derivatives import Derive, derived
from jaxcircuits.graph.direct import Factors, Leaves, Wiring, bias_names, feature_edges, logit_edges, ones
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.listing import Layout, Listing, layout_of
from jaxcircuits.graph.prompt import Slots, choose, run, take_apart
from jaxcircuits.graph.settings import GraphSettings
from jaxcircuits.graph.targets import LogitTargets, logit_targets
from jaxcircuits.model import hook_names
from jaxcircuits.progress import progress
from jaxcircuits.sae import SAE

CHUNK = 128
"""Targets whose derivatives are computed together, at most; the same for all prompts, so that programs are few."""

CHUNK_NUMBERS = 2**25
"""Numbers that these derivatives may take, roughly."""


def build_graph(bundle: Bundle, prompt: Prompt, *, quiet: bool = True, **settings: Any) -> Graph:
    """The graph of one prompt: direct edges between embeddings, features, errors, biases, GELU constants and logits.

    Args:
        bundle: Model and SAEs.
        prompt: A text, which gets BOS, or token ids, which are taken as they are.
        quiet: Whether there is no progress bar.
        **settings: Any field of `GraphSettings`.

    Raises:
        InputError: The prompt or a setting cannot be used.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> into = graph.adjacency().sum(axis=1)
    >>> ends = graph.nodes.are("feature", "logit")
    >>> bool(abs(into - graph.nodes.value)[ends].max() < 1e-4)  # frozen edges add up
    True
    """
    unknown = sorted(set(settings) - set(GraphSettings.__dataclass_fields__))
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; there are {', '.join(GraphSettings.__dataclass_fields__)}.")
    asked = GraphSettings(**settings)
    tokens = tokenized(bundle, prompt)
    check_tokens(tokens, bundle, 0)
    with jax.default_matmul_precision(PRECISIONS[asked.precision]):
        return graph_of(bundle, Prepared(bundle, asked, tokens), tokens, quiet=quiet)


def graph_of(bundle: Bundle, made: "Prepared", tokens: Int[np.ndarray, "pos"], *, quiet: bool = True) -> Graph:
    """The graph of a prompt that has been taken apart."""
    listing = Listing(made.layout, made.settings)
    with progress(quiet) as bar:
        task = bar.add_task("edges", total=len(made.layout.targets))
        for first, values, baselines, rows, parts in made.derivatives():
            listing.add(first, values, baselines, rows, parts)
            bar.advance(task, len(values))
    return listing.graph(tokens, tuple(bundle.token_strings(tokens)), made.names, made.biases, made.description(bundle))


class Prepared:
    """A prompt taken apart and everything that its derivatives need."""

    def __init__(self, bundle: Bundle, settings: GraphSettings, tokens: np.ndarray) -> None:
        self.settings = settings
        self.names = chosen_saes(bundle, settings.saes)
        self.saes: tuple[SAE, ...] = tuple(bundle.saes[name] for name in self.names)
        self.params = bundle.params
        self.n = len(tokens)
        self.at = resolved_position(settings.position, self.n)
        self.wiring = Wiring(
            cfg=replace(bundle.cfg, logit_cap=None),  # a cap would make every logit depend on itself alone
            reads=tuple(sae.cfg.hook_name for sae in self.saes),
            writes=tuple(sae.cfg.hook_written for sae in self.saes),
            gelu=settings.gelu if settings.derivative == "frozen" else None,
        )
        padded = min(bucket(self.n), bundle.cfg.n_ctx)  # what comes later changes nothing that is causal
        self.tokens = jnp.asarray(np.pad(tokens, (0, padded - self.n)), jnp.int32)
        passed = run(self.params, self.saes, self.tokens, jnp.int32(self.at), wiring=self.wiring)
        bos = not settings.include_bos and bundle.cfg.bos_token_id is not None and tokens[0] == bundle.cfg.bos_token_id
        self.acts = acts = tuple(np.array(a) for a in passed.acts)
        lengths = tuple(np.linalg.norm(np.asarray(sae.weights.W_dec), axis=1) for sae in self.saes)
        self.slots: tuple[Slots, ...] = choose(settings, acts, lengths, self.n, int(bos))
        self.logits = np.asarray(passed.logits)
        self.logit_targets: LogitTargets = logit_targets(bundle, settings, self.logits)
        moved = settings.derivative == "integrated"
        start = self.params.W_E.mean(0) if moved else jnp.zeros_like(self.params.W_E[0])
        slots = tuple(jnp.asarray(s.feature) for s in self.slots)
        self.leaves: Leaves = take_apart(
            self.params, self.saes, self.tokens, passed, slots, start, embedding_scale=bundle.cfg.embedding_scale
        )
        self.biases = bias_names(self.params)
        self.factors: Factors = ones(self.wiring, self.leaves, self.biases)
        self.layout: Layout = layout_of(
            self.wiring, self.factors, self.n, self.at, self.slots, self.logit_targets, tokens, self.names
        )

    def derivatives(self):
        """Chunks of targets in the order of their nodes: the first one's number, and what `derived` gives."""
        size = self.chunk()
        first = 0
        for number, slots in enumerate(self.slots):
            for start in range(0, len(slots.pos), size):
                pos, feature = slots.pos[start : start + size], slots.number[start : start + size]

                def features(wiring: Wiring, factors: Factors, n=number, p=pos, f=feature):
                    at, which = _padded(p, size), _padded(f, size)
                    values, found = feature_edges(
                        self.params, self.saes[n], self.tokens, self.leaves, factors, at, which, wiring=wiring, number=n
                    )
                    return np.asarray(values), found

                yield first, *self._derived(features, len(pos))
                first += len(pos)

        wanted = self.logit_targets.directions
        filled = np.pad(wanted, ((0, bucket(len(wanted)) - len(wanted)), (0, 0)))
        directions = jnp.asarray(filled, self.params.W_U.dtype)

        def logits(wiring: Wiring, factors: Factors):
            values, found = logit_edges(
                self.params, self.tokens, self.leaves, factors, jnp.int32(self.at), directions, wiring=wiring
            )
            return np.asarray(values), found

        yield first, *self._derived(logits, len(wanted))

    def _derived(self, derive: Derive, n: int):
        values, baselines, rows, parts = derived(derive, self.wiring, self.factors, self.settings)
        return values[:n], baselines[:n], rows[:n], {name: part[:n] for name, part in parts.items()}

    def chunk(self) -> int:
        """Targets at once: one program for all chunks, whose derivatives fit into memory."""
        cfg = self.wiring.cfg
        numbers = len(self.tokens) * (cfg.d_mlp + 4 * cfg.d_model) * 2 + sum(s.feature.size for s in self.slots)
        fits = max(4, CHUNK_NUMBERS // numbers)
        return min(CHUNK, 1 << (fits.bit_length() - 1))

    def description(self, bundle: Bundle) -> dict[str, Any]:
        """What was asked and used."""
        targets = self.logit_targets
        named = sorted({*targets.token.tolist(), *(t for t in targets.minus.tolist() if t >= 0)})
        return {
            **asdict(self.settings),
            "saes": list(self.names),
            "reads": list(self.wiring.reads),
            "writes": list(self.wiring.writes),
            "position": self.at,
            "logits": None if self.settings.logits is None else list(self.settings.logits),
            "difference": None if self.settings.difference is None else list(self.settings.difference),
            "logit_tokens": named,
            "logit_strings": bundle.token_strings(np.array(named, int)),
            "n_layers": bundle.cfg.n_layers,
            "dtype": str(self.params.W_E.dtype),
            "versions": {name: version(name) for name in ("jaxcircuits", "jax", "numpy")},
            "device": jax.local_devices()[0].platform,
            "sha256": weight_hashes(bundle),
        }


def chosen_saes(bundle: Bundle, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the SAEs of a graph, in the order in which they read.

    Raises:
        InputError: One is unknown, or two write one hook.
    """
    for name in names or ():
        if name not in bundle.saes:
            raise InputError(f"the bundle has no SAE {name!r}; it has {', '.join(bundle.saes) or 'none'}.")
    order = hook_names(bundle.cfg)

    def depth(name: str) -> tuple[int, int]:
        cfg = bundle.saes[name].cfg
        return order.index(cfg.hook_name), order.index(cfg.hook_written)

    found = sorted(dict.fromkeys(bundle.saes if names is None else names), key=depth)
    writers: dict[str, str] = {}
    for name in found:
        hook = bundle.saes[name].cfg.hook_written
        if hook in writers:
            raise InputError(
                f"the SAEs {writers[hook]} and {name} both write {hook}, so only one can be in a graph; "
                "name those you want."
            )
        writers[hook] = name
    return tuple(found)


def resolved_position(position: int, n: int) -> int:
    """A position of a prompt of `n` tokens; negative ones count from the end.

    Raises:
        InputError: The prompt has none such.
    """
    if not -n <= position < n:
        raise InputError(f"a position must lie in 0..{n - 1}, got {position}; the prompt has {n} tokens.")
    return position % n


def _padded(index: np.ndarray, size: int) -> jax.Array:
    return jnp.asarray(np.pad(index, (0, size - len(index)), mode="edge"), jnp.int32)
