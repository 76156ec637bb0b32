"""From prompts to edges: plan the shapes, run the programs batch by batch, make room where it was too small, list.

1. Look at some prompts: how many sources and targets are there? The plan makes room for them (`plan`).
2. Pad prompts of like length into a batch and run the programs (`program`).
3. Where more was found than there is room for, run the batch again with more: nothing is ever cut.
4. List every kept pair of a target and a source as an edge (`listing`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.ahead import Ahead
from jaxcircuits.attribution.edges import SOURCE_COLUMNS, Columns, concatenate, edge_columns, target_columns
from jaxcircuits.attribution.ends import target_end
from jaxcircuits.attribution.listing import Listed, by_prompt, list_edges, list_sources
from jaxcircuits.attribution.plan import Counts, Plan, device_memory, grown, halved, make_plan
from jaxcircuits.attribution.problem import PRECISIONS, Settings, resolve
from jaxcircuits.attribution.program import Found, Passed, attribute_chunk, forward_pass, same_position
from jaxcircuits.attribution.prompts import Named, Prompts, check_tokens
from jaxcircuits.attribution.selection import Sources, Targets, named_targets
from jaxcircuits.attribution.tables import make_tables
from jaxcircuits.attribution.task import Shape, Task
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.mesh import batch_size, place_batch, place_weights

PROBED = 4
"""Batches that are looked at before a plan is made."""

SMALL = 1024
"""Features of a prompt, at all its positions, for which there is simply room."""


@dataclass
class Report:
    """What happened on the way.

    Attributes:
        batches: How many were run.
        regrown: How many of them had to be run again with more room.
        split: How many were run in halves because memory was short.
    """

    batches: int = 0
    regrown: int = 0
    split: int = 0


class Engine:
    """Attribution between two SAEs of a bundle; holds what all prompts share.

    Args:
        bundle: Model and SAEs.
        settings: What to attribute to what.
        memory: Bytes to plan for, on each device; by default by what it has.
        mesh: The devices, from `make_mesh`; one by default.

    Raises:
        InputError: The settings do not fit the bundle, or ask of a method what it does not cover.
    """

    def __init__(self, bundle: Bundle, settings: Settings, memory: int | None = None, mesh: Mesh | None = None) -> None:
        self.mesh = mesh
        params, saes = place_weights((bundle.params, dict(bundle.saes)), mesh)
        self.bundle = bundle = replace(bundle, params=params, saes=saes)
        if settings.stages and settings.parts == "none":
            settings = replace(settings, parts="kinds")
        self.settings = settings
        self.pair = resolve(bundle, settings)
        self.problem = self.pair.problem
        self.memory = memory
        self.task = Task(self.problem, settings, self._way())
        self.plan: Plan | None = None
        self.baseline: Float[np.ndarray, d_sae] | None = None
        self.report = Report()
        self.edge_columns = edge_columns(settings, bundle.cfg.n_heads)
        self.target_columns = target_columns(settings)
        with jax.default_matmul_precision(PRECISIONS[settings.precision]):
            tables = make_tables(bundle, self.pair, neurons=settings.source_basis == "neurons")
        self.tables = place_weights(tables, mesh)

    @property
    def method(self) -> str:
        """The method that is used."""
        return "reference" if self.task.way == "reference" else "structured"

    def _way(self) -> str:
        settings, problem = self.settings, self.problem
        hooks = f"{problem.source_hook} and {problem.target_hook}"
        if settings.stages and not problem.adjacent_mlps:
            raise InputError(f"stages are defined for mlp.hook_post of adjacent layers, got {hooks}; leave them out.")
        if settings.parts != "none" and target_end(problem.target_hook) is None:
            raise InputError(
                f"parts are of the attention in the target's block, so the target must come after it, got {hooks}; "
                "leave --parts out."
            )
        way = problem.closed_form
        if way == "between" and settings.parts != "none":
            way = None
        if settings.complete and way is not None and problem.sees_attention_apart:
            way = None  # its remainder is of the stream that the MLP reads
        if settings.parts == "heads" and (way is None or settings.method == "reference"):
            raise InputError(
                "parts by head are computed by method structured where one block's attention lies between, "
                f"got {hooks} and method {settings.method}; ask for parts by kind."
            )
        if settings.stages and settings.method == "reference":
            raise InputError("stages are computed by method structured, got method reference; leave one out.")
        if settings.method == "structured" and way is None:
            raise InputError(
                "method 'structured' covers sources that write the residual stream and targets in a later block, and "
                f"parts where one block's attention lies between, got {hooks}{self._held()}; use --method reference."
            )
        return "reference" if settings.method == "reference" or way is None else way

    def _held(self) -> str:
        return f" with {', '.join(self.problem.held)} held" if self.problem.held else ""

    def description(self) -> dict[str, Any]:
        """The settings as asked for, and what was used where they left a choice."""
        used = {"source": self.pair.source_name, "target": self.pair.target_name, "method": self.method}
        hooks = {"source_hook": self.problem.source_hook, "target_hook": self.problem.target_hook}
        more = {"held": list(self.problem.held), "dtype": str(self.bundle.params.W_E.dtype)}
        return {**asdict(self.settings), "completeness": self.settings.complete, **used, **hooks, **more}

    # --- before a job -----------------------------------------------------------------------------

    def make_plan(self, prompts: Prompts, targets: Named = None, lengths: Sequence[int] | None = None) -> Plan:
        """Chooses the shapes of a job and keeps them: looks at some of its prompts, and at the memory.

        Args:
            prompts: Of the job; where they are only some of it, `lengths` are of all.
            targets: As for `run`.
            lengths: Of the whole job's prompts; by default of `prompts`.

        Raises:
            InputError: A prompt or a target cannot be used.
        """
        for row, tokens in prompts:
            check_tokens(tokens, self.bundle, row)
        source = self.pair.source.cfg
        widths = {
            "d_sae": self.tables.directions.shape[0],
            "d_sae_target": self.pair.target.cfg.d_sae,
            "d_in": source.d_in,
            "bytes": self.bundle.params.W_E.dtype.itemsize,
        }
        sampled = lengths is not None
        lengths = [len(tokens) for _, tokens in prompts] if lengths is None else lengths
        memory = self.memory or device_memory()
        longest = max(lengths)
        if longest * max(widths["d_sae"], widths["d_sae_target"]) <= SMALL:
            every = Counts(widths["d_sae"], widths["d_sae"], widths["d_sae_target"])
            self.plan = self._spread(make_plan(self.task, widths, lengths, every, memory, exact=True), lengths)
            return self.plan
        nothing = Counts(1, 1, 1 if targets is None else len(targets))
        probing = self._spread(make_plan(self.task, widths, lengths, nothing, memory, exact=True), lengths)
        counts, exact = self._probe(prompts, targets, probing)
        plan = make_plan(self.task, widths, lengths, counts, memory, exact=exact and not sampled)
        self.plan = self._spread(plan, lengths)
        return self.plan

    def _spread(self, plan: Plan, lengths: Sequence[int]) -> Plan:
        """A plan for one device, spread over all of them: its batches are so many times as large."""
        if self.mesh is None:
            return plan
        batches = [batch_size(shape.batch, len(lengths), self.mesh) for shape in plan.shapes]
        shapes = tuple(replace(s, batch=n, sequences_at_once=n) for s, n in zip(plan.shapes, batches, strict=True))
        return replace(plan, shapes=shapes)

    def _probe(self, prompts: Prompts, named: Named, plan: Plan) -> tuple[Counts, bool]:
        """Counts sources and targets in batches of the commonest length, and says whether these were all prompts."""
        batches = list(self._batches(prompts, plan))
        commonest = max(plan.shapes, key=lambda s: sum(len(b) for b, shape in batches if shape == s))
        chosen = [(b, s) for b, s in batches if s == commonest] if len(batches) > PROBED else batches
        sources, per_position, targets = 1.0, 1, 1.0
        for batch, shape in chosen[:PROBED]:
            passed = self._forward(batch, shape, named)
            lengths = np.array([len(tokens) for _, tokens in batch])
            n = len(batch)
            # A short prompt may be dense by chance; its room is small in any case.
            sources = max(sources, float((np.asarray(passed.sources.number)[:n] / np.maximum(lengths, 16)).max()))
            targets = max(targets, float((np.asarray(passed.targets.number)[:n] / np.maximum(lengths, 16)).max()))
            per_position = max(per_position, int(np.diff(np.asarray(passed.sources.starts)[:n]).max()))
        if named is not None:
            targets = len(named) / min(len(tokens) for _, tokens in prompts)
        return Counts(sources, per_position, targets), len(chosen) == len(batches) <= PROBED

    def fit_baseline(self, parts: Iterable[Prompts]) -> None:
        """Sets the baseline of integrated derivatives: zero, or the sources' mean over positions that count.

        Args:
            parts: All prompts, some at a time.
        """
        d_sae = self.tables.directions.shape[0]
        if self.settings.derivative != "integrated":
            return
        dtype = self.bundle.params.W_E.dtype
        total, n = np.zeros(d_sae), 0
        if self.settings.baseline == "mean":
            for prompts in parts:
                plan = self.plan or self.make_plan(prompts)
                for batch, shape in self._batches(prompts, plan):
                    passed = self._forward(batch, shape, None)
                    counted = np.asarray(passed.counted)
                    total += np.asarray(passed.acts, np.float64)[counted].sum(0)
                    n += int(counted.sum())
        self.baseline = (total / max(n, 1)).astype(dtype)

    # --- a job ------------------------------------------------------------------------------------

    def run(self, prompts: Prompts, targets: Named = None) -> tuple[Columns, Columns]:
        """Attributes some prompts; makes a plan if there is none.

        Args:
            prompts: Row number and token ids of each.
            targets: `(position, feature)` to attribute in each prompt; by default every active one.

        Returns:
            Edges and targets by prompt number, target position, target feature, source position and source feature.

        Raises:
            InputError: A prompt is empty, too long, or holds an unknown token id, or a named target does not exist.
        """
        listed = self.listed(prompts, targets)
        return listed.edges, listed.targets

    def listed(self, prompts: Prompts, targets: Named = None) -> Listed:
        """`run`, and the sources that are active."""
        with Ahead() as ahead:
            return self.listing(prompts, targets, ahead)()

    def listing(self, prompts: Prompts, targets: Named, ahead: Ahead) -> Callable[[], Listed]:
        """Computes what `listed` returns; to be called for it, on any thread, before `ahead` ends.

        While one batch is listed by `ahead`, the next is computed, and so are further prompts.
        """
        for row, tokens in prompts:
            check_tokens(tokens, self.bundle, row)
        parts: list[Future] = []
        if prompts:
            plan = self.plan or self.make_plan(prompts, targets)
            if self.settings.derivative == "integrated" and self.baseline is None:
                self.fit_baseline([prompts])
            for batch, shape in self._batches(prompts, plan):
                parts += self._run(batch, shape, targets, ahead)

        def listed() -> Listed:
            edges, found, sources = zip(*(part.result() for part in parts), strict=True) if parts else ((), (), ())
            return Listed(
                by_prompt(edges, self.edge_columns),
                by_prompt(found, self.target_columns),
                by_prompt(sources, SOURCE_COLUMNS),
            )

        return listed

    def _batches(self, prompts: Prompts, plan: Plan) -> Iterator[tuple[Prompts, Shape]]:
        by_shape: dict[Shape, list[tuple[int, np.ndarray]]] = {}
        for row, tokens in prompts:
            by_shape.setdefault(plan.shape(len(tokens)), []).append((row, tokens))
        for shape, members in sorted(by_shape.items(), key=lambda item: item[0].length):
            for i in range(0, len(members), shape.batch):
                yield members[i : i + shape.batch], shape

    def _run(self, batch: Prompts, shape: Shape, named: Named, ahead: Ahead) -> list[Future]:
        """What a batch gives, by chunk of targets, as it will be `Listed`; in halves where memory does not suffice."""
        self.report.batches += 1
        try:
            while True:
                parts, most = self._attempt(batch, shape, named, ahead)
                if parts is not None:
                    return parts
                shape = grown(shape, most)
                self.report.regrown += 1
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if shape.batch == 1 and shape.chunk == 1:
                raise InputError(
                    f"prompt {batch[0][0]} with {len(batch[0][1])} tokens does not fit this device's memory, "
                    "not even one target at a time; shorten it or raise the thresholds."
                ) from None
        self.report.split += 1
        if shape.batch == 1:
            return self._run(batch, halved(shape), named, ahead)
        smaller = replace(shape, batch=shape.batch // 2)
        halves = (batch[i : i + smaller.batch] for i in range(0, len(batch), smaller.batch))
        return [part for half in halves for part in self._run(half, smaller, named, ahead)]

    def _attempt(self, batch: Prompts, shape: Shape, named: Named, ahead: Ahead) -> tuple[list[Future] | None, Shape]:
        """What a batch gives, or `None` where it did not fit; and what room it needs."""
        most = shape
        parts = []
        sources = targets = None
        for *lists, found, first in self._found(batch, shape, named):
            if sources is None:
                sources, targets = jax.tree.map(np.asarray, lists)
                most = replace(
                    shape,
                    sources=int(sources.number.max()),
                    per_position=int(np.diff(sources.starts).max()),
                    targets=int(targets.number.max()),
                )
            most = replace(most, kept=max(most.kept, int(np.asarray(found.most_kept).max(initial=0))))
            room = (shape.sources, shape.per_position, shape.targets, shape.kept)
            needed = (most.sources, most.per_position, most.targets, most.kept)
            if any(n > r for n, r in zip(needed, room, strict=True)):
                return None, most
            parts.append(ahead.submit(self._listed, batch, sources, targets, found, first))
        return parts, most

    def _listed(self, batch: Prompts, sources: Any, targets: Any, found: Found, first: int) -> Listed:
        rows = np.array([row for row, _ in batch], np.int32)
        edges = list_edges(
            rows, sources, targets, found, first, self.tables, self.baseline, self.settings, self.bundle.cfg.n_heads
        )
        if first:  # sources are listed once a batch
            return Listed(*edges, concatenate([], SOURCE_COLUMNS))
        counted = np.zeros((len(batch), sources.starts.shape[1] - 1), bool)
        for i, (_, ids) in enumerate(batch):
            counted[i, : len(ids)] = self.counted(ids)
        return Listed(*edges, list_sources(rows, sources, counted, self.tables.directions.shape[0]))

    def _found(self, batch: Prompts, shape: Shape, named: Named) -> Iterator[tuple[Sources, Targets, Found, int]]:
        """Runs the programs on a batch; a chunk of targets at a time where all positions are sources."""
        params, source, target = self.bundle.params, self.pair.source, self.pair.target
        baseline = None if self.baseline is None else jnp.asarray(self.baseline)
        with jax.default_matmul_precision(PRECISIONS[self.settings.precision]):
            given = self._inputs(batch, shape, named)
            if self.settings.positions == "same":
                yield (
                    *same_position(params, source, target, self.tables, baseline, *given, task=self.task, shape=shape),
                    0,
                )
                return
            passed = forward_pass(params, source, target, *given, task=self.task, shape=shape)
            number = min(shape.targets, max(1, int(passed.targets.number.max())))
            for first in range(0, number, shape.chunk):
                found = attribute_chunk(
                    params,
                    source,
                    target,
                    self.tables,
                    baseline,
                    passed,
                    jnp.asarray(first, jnp.int32),
                    task=self.task,
                    shape=shape,
                )
                yield passed.sources, passed.targets, found, first

    def _forward(self, batch: Prompts, shape: Shape, named: Named) -> Passed:
        with jax.default_matmul_precision(PRECISIONS[self.settings.precision]):
            given = self._inputs(batch, shape, named)
            return forward_pass(
                self.bundle.params, self.pair.source, self.pair.target, *given, task=self.task, shape=shape
            )

    def _inputs(self, batch: Prompts, shape: Shape, named: Named) -> tuple[Array, Array, Any]:
        """Padded token ids, which positions count, and targets that are known by name."""
        tokens = np.zeros((shape.batch, shape.length), np.int32)
        counted = np.zeros((shape.batch, shape.length), bool)
        for i, (_, ids) in enumerate(batch):
            tokens[i, : len(ids)] = ids
            counted[i, : len(ids)] = self.counted(ids)
        if named is None:
            return (*place_batch((jnp.asarray(tokens), jnp.asarray(counted)), self.mesh), None)
        pos, feature = np.zeros((2, shape.batch, shape.targets), np.int32)
        count = np.zeros(shape.batch, np.int32)
        for i, (_, ids) in enumerate(batch):
            at, which = named_targets(named, self.pair.target.cfg.d_sae, counted[i, : len(ids)])
            n = min(len(at), shape.targets)
            pos[i, :n], feature[i, :n], count[i] = at[:n], which[:n], len(at)
        given = jnp.asarray(tokens), jnp.asarray(counted), tuple(map(jnp.asarray, (pos, feature, count)))
        return place_batch(given, self.mesh)

    def counted(self, ids: Int[np.ndarray, "pos"]) -> Bool[np.ndarray, "pos"]:
        """Which positions count as source and target: all but a BOS at position 0, unless that is asked for."""
        counted = np.ones(len(ids), bool)
        if not self.settings.include_bos and ids[0] == self.bundle.cfg.bos_token_id:
            counted[0] = False
        return counted
