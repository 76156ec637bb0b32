"""Questions to a run: what drives a feature, what a feature drives, where two meet, what matters in a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxcircuits.bulk.edge_statistics import FILE, facts_of, statistics_of
from jaxcircuits.bulk.estimates import Prior, shrink
from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.run import Run
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.compute import Expression

BY = ("effect", "evidence", "absolute")
SIGNS = ("positive", "negative", "both")


@dataclass(frozen=True)
class Order:
    """Which rows are shown, and which first.

    Attributes:
        by: `"effect"`: |shrunk mean|; `"evidence"`: |z| of the hypothesis that the mean is zero; `"absolute"`: the mean
            of |attribution|. Edges of one prompt are by |attribution| whatever it says.
        sign: `"negative"`: only what suppresses.
        min_stories: Pairs with edges in fewer prompts are left out; by default as the statistics were made.
        offset: Only pairs so far apart (target position minus source position); by default any.
        limit: How many rows.
    """

    by: str = "effect"
    sign: str = "both"
    min_stories: int | None = None
    offset: int | None = None
    limit: int = 20

    def __post_init__(self) -> None:
        for name, allowed in (("by", BY), ("sign", SIGNS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Statistics:
    """Some rows of a run's statistics.

    Attributes:
        table: The rows (`statistics_table.STATISTICS`).
        stored: Whether the run kept them; else they come from its edges, and false-discovery rates and shrinkage are
            among these rows alone.
        min_stories: What pairs were judged from.
        edges_cut: How many edges the run did not keep.
    """

    table: "pa.Table"
    stored: bool
    min_stories: int
    edges_cut: int


def statistics_for(
    run: Run, *, target: int | None = None, source: int | None = None, quiet: bool = False
) -> Statistics:
    """The statistics of a feature's pairs, or of one pair, at every offset; from the run's edges where it kept none.

    Args:
        run: From `load_run`.
        target: Only pairs with this target feature.
        source: Only pairs with this source feature.
        quiet: No progress bar.

    Raises:
        InputError: The run kept neither statistics nor edges, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _named(target, source)
    stored = (run.path / FILE).is_file()
    if stored:
        try:
            table = pq.read_table(run.path / FILE, filters=rows)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{run.path / FILE} is damaged ({str(error).splitlines()[0]}); run it again.") from None
    else:
        table = statistics_of(run, rows=rows, quiet=quiet)
    facts = facts_of(table)
    return Statistics(table, stored, facts["min_stories"], facts["edges_cut"])


def ranked(statistics: Statistics, order: Order) -> "pa.Table":
    """The rows in their order; with fewer stories than they were judged from, means are shrunk all the same.

    >>> import pyarrow as pa
    >>> from jaxcircuits.bulk.questions import Order, Statistics, ranked
    >>> means = {"mean": [1.0, -2.0, 5.0], "mean_shrunk": [0.9, -1.8, None]}
    >>> statistics = Statistics(pa.table({"stories": [9, 9, 1], "offset": [0, 0, 0], **means}), True, 5, 0)
    >>> ranked(statistics, Order())["mean"].to_pylist(), ranked(statistics, Order(sign="positive"))["mean"].to_pylist()
    ([-2.0, 1.0], [1.0])
    """
    import pyarrow as pa

    table = statistics.table
    least = statistics.min_stories if order.min_stories is None else order.min_stories
    column = {n: table[n].to_numpy() for n in ("stories", "offset", "mean")}
    if least < statistics.min_stories:
        facts = facts_of(table)
        if facts["tested"]:
            prior = Prior(facts["prior_mean"], facts["prior_variance"])
            error, scale = (table[n].to_numpy() for n in ("standard_error", "mean_absolute"))
            effect = np.where(np.isnan(error), prior.mean * scale, shrink(column["mean"], error, scale, prior))
        else:
            effect = column["mean"]
        table = table.set_column(table.column_names.index("mean_shrunk"), "mean_shrunk", pa.array(effect))
    keep = (column["stories"] >= least) & _of_sign(column["mean"], order.sign)
    if order.offset is not None:
        keep &= column["offset"] == order.offset
    at = np.flatnonzero(keep)
    by = {"effect": "mean_shrunk", "evidence": "z", "absolute": "mean_absolute"}[order.by]
    first = np.argsort(-np.abs(table[by].to_numpy()[at]), kind="stable")[: order.limit]
    return table.take(at[first])


@dataclass(frozen=True)
class Pair:
    """Every edge between two features.

    Attributes:
        statistics: One row an offset.
        examples: The edges that come first, strongest first.
        values: The attribution of every edge that was kept.
        prompts: The prompts of the examples.
    """

    statistics: "pa.Table"
    examples: "pa.Table"
    values: np.ndarray
    prompts: "pa.Table"


def pair(run: Run, statistics: Statistics, source: int, target: int, order: Order, *, quiet: bool = False) -> Pair:
    """Where two features meet. Without edges in the run, there are the statistics alone.

    Raises:
        InputError: They never meet.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = statistics.table
    if order.offset is not None:
        table = table.filter(pc.field("offset") == order.offset)
    if not table.num_rows:
        where = "" if order.offset is None else f" at offset {order.offset}"
        raise InputError(f"no edge leads from source {source} to target {target}{where}; see --drivers-of {target}.")
    rows = _named(target, source)
    assert rows is not None
    if order.offset is not None:
        rows = rows & (pc.field("target_pos") - pc.field("source_pos") == order.offset)
    edges = list(_edges(run, rows, quiet))
    every = pa.concat_tables(edges) if edges else None
    if every is None:
        return Pair(
            table, pa.table({"prompt": pa.array([], pa.int32())}), np.zeros(0), read_prompts_of(run).slice(0, 0)
        )
    examples = _strongest(every, order)
    return Pair(table, examples, every["attribution"].to_numpy(), _prompts(run, examples))


def of_prompt(run: Run, prompt: int, order: Order) -> tuple["pa.Table", "pa.Table"]:
    """The strongest edges of a prompt, and the prompt.

    Raises:
        InputError: There is no such prompt, or the run kept no edges.
    """
    import pyarrow.compute as pc

    number = run.record["prompts"]
    if not 0 <= prompt < number:
        raise InputError(f"the run has prompts 0..{number - 1}, got {prompt}.")
    if not any("edges" in part for part in run.record["parts"]):
        raise InputError(
            f"the run {run.path} kept no edges, so it does not know those of a prompt; run it again with them."
        )
    rows = pc.field("prompt") == prompt
    if order.offset is not None:
        rows = rows & (pc.field("target_pos") - pc.field("source_pos") == order.offset)
    part = next(p for p in run.record["parts"] if p["prompts"][0] <= prompt < p["prompts"][1])
    edges = _strongest(read_part(run, part, "edges", rows), order)
    return edges, read_prompts_of(run).slice(prompt, 1)


def _named(target: int | None, source: int | None) -> "Expression | None":
    import pyarrow.compute as pc

    rows = [pc.field(n) == f for n, f in (("target_feature", target), ("source_feature", source)) if f is not None]
    return rows[0] if len(rows) == 1 else rows[0] & rows[1] if rows else None


def _edges(run: Run, rows: "Expression", quiet: bool) -> Iterator["pa.Table"]:
    kept = [part for part in run.record["parts"] if "edges" in part]
    with progress(quiet) as bar:
        for part in bar.track(kept, description="looking for edges"):
            yield read_part(run, part, "edges", rows)


def _strongest(edges: "pa.Table", order: Order) -> "pa.Table":
    values = edges["attribution"].to_numpy()
    at = np.flatnonzero(_of_sign(values, order.sign))
    return edges.take(at[np.argsort(-np.abs(values[at]), kind="stable")[: order.limit]])


def _of_sign(values: np.ndarray, sign: str) -> np.ndarray:
    return {"positive": values > 0, "negative": values < 0, "both": np.ones(len(values), bool)}[sign]


def _prompts(run: Run, edges: "pa.Table") -> "pa.Table":
    return read_prompts_of(run).take(np.unique(edges["prompt"].to_numpy()))
