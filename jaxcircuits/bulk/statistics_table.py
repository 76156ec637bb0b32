"""`statistics.parquet`: its columns, and how they follow from merged sums, a batch of pairs at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.ahead import Ahead
from jaxcircuits.bulk import estimates
from jaxcircuits.bulk.feature_counts import FeatureCounts
from jaxcircuits.bulk.scratch import scratch_batches, scratch_writer
from jaxcircuits.bulk.store import ROWS, encodings

if TYPE_CHECKING:
    import pyarrow as pa

STATISTICS: dict[str, str] = {
    "target_feature": "driven",
    "source_feature": "driving",
    "offset": "target position - source position",
    "edges": "edges kept: what means are over",
    "both_active": "of these, how many with both features active; fewer where targets that are off were kept",
    "target_active": "how often the target is active where a position `offset` before it counts",
    "source_active": "how often the source is active where a position `offset` after it exists",
    "position_pairs": "how many pairs of counted positions are `offset` apart",
    "stories": "prompts with such an edge",
    "effective_stories": "as many equal stories would tell as much: edges^2 / sum of squares of stories' edges",
    "mean": "of attribution, over edges",
    "standard_error": "of the mean, clustered by story",
    "degrees": "its degrees of freedom",
    "mean_low": "95 % confidence interval of the mean over all stories like these",
    "mean_high": "its upper end",
    "mean_shrunk": "mean relative to mean_absolute, shrunk to what the run's pairs have in common; times mean_absolute",
    "mean_absolute": "of |attribution|",
    "variance": "of attribution, over edges (divided by their number)",
    "share_positive": "of edges",
    "sum": "of attribution",
    "expected": "sum / target_active: the mean over the target's activations, 0 where the source is off",
    "twera": "target-weighted expected attribution: sum of target_act * attribution / sum of target_act, likewise",
    "z": "of the hypothesis that the mean is zero, clustered by story",
    "p_mean": "its two-sided p",
    "q_mean": "false-discovery rate if this pair and those of smaller p are called non-zero",
    "chance": "both_active if the two were independent at each position",
    "p_association": "two-sided p of both_active under that hypothesis, clustered by story",
    "q_association": "its false-discovery rate, among all pairs of features with enough stories",
    "correlation": "of the two activations over position pairs, inactive being 0",
    "largest_attribution": "of largest absolute value",
    "largest_prompt": "where it is",
    "largest_target_pos": "where it is",
    "largest_source_pos": "where it is",
}
"""The columns of `statistics.parquet`, and what they mean. Source: `expected` and `twera` are the ERA and TWERA of
Ameisen et al. 2025, "Circuit tracing", with this run's derivative in place of a virtual weight."""

NAMES = ("target_feature", "source_feature", "offset")
COUNTS = ("edges", "both_active", "target_active", "source_active", "position_pairs", "stories")
COUNTS += ("largest_prompt", "largest_target_pos", "largest_source_pos")


_JUDGED = ("mean", "standard_error", "mean_absolute", "p_mean", "p_association")


class Tests:
    """What a run as a whole is judged by: `counted` says which pairs are tested; else one entry a tested pair."""

    def __init__(self, counted: list[np.ndarray], found: list[tuple[np.ndarray, ...]], hypotheses: int | None) -> None:
        self.counted = np.concatenate([np.zeros(0, bool), *counted])
        mean, error, scale, p_mean, p_association = (
            np.concatenate([np.zeros(0), *(f[i] for f in found)]) for i in range(5)
        )
        self.hypotheses = hypotheses
        self.prior = estimates.fit_prior(mean, error, scale)
        self.shrunk = estimates.shrink(mean, error, scale, self.prior)
        self.q_mean = estimates.false_discovery(p_mean)
        self.q_association = (
            np.full(len(p_mean), np.nan) if hypotheses is None else estimates.false_discovery(p_association, hypotheses)
        )


def derive(
    merged: Iterable["pa.Table"], derived: Path, counts: FeatureCounts | None, least: int, *, complete: bool
) -> Tests:
    """Writes everything that needs one pair alone.

    Args:
        merged: Merged sums, one row a pair (`pair_sums`), some at a time.
        derived: The file to write.
        counts: Of features; `None` where they are unknown.
        least: Stories that a tested pair has at least.
        complete: Whether no edge was cut, so that joint activations can be compared with chance.
    """
    import pyarrow as pa

    counted, found, offsets = [], [], set()
    schema = pa.schema(dict.fromkeys(STATISTICS, pa.float64()))
    with scratch_writer(derived, schema) as write:
        for table in merged:
            columns = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
            out, tested = _one_batch(columns, counts, least, complete)
            counted.append(tested)
            found.append(tuple(out[n][tested] for n in _JUDGED))
            offsets |= set(np.unique(columns["offset"]).tolist())
            write(pa.table({name: values.astype(np.float64, copy=False) for name, values in out.items()}, schema))
    hypotheses = None
    if counts is not None and complete:  # every pair that could have been found, whether or not it ever was
        often = [int((side.stories >= least).sum()) for side in (counts.source, counts.target)]
        hypotheses = max(often[0] * often[1] * len(offsets), sum(len(f[0]) for f in found))
    return Tests(counted, found, hypotheses)


def _one_batch(
    c: Mapping[str, np.ndarray], counts: FeatureCounts | None, least: int, complete: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    n = len(c["edges"])
    undefined = np.full(n, np.nan)
    tested = c["stories"] >= least
    mean = estimates.clustered_mean(
        c["edges"], c["total"], c["story_squares"], c["story_cross"], c["edges_2"], c["edges_3"]
    )
    low, high = estimates.confidence_interval(mean)
    z, p = estimates.zero_mean(c["total"], c["story_squares"], c["stories"])
    target, source, offset = c["target_feature"], c["source_feature"], c["offset"]
    out = {name: undefined for name in STATISTICS} | {
        "target_feature": target,
        "source_feature": source,
        "offset": offset,
        "edges": c["edges"],
        "both_active": c["both_active"],
        "stories": c["stories"],
        "effective_stories": c["edges"] ** 2 / c["edges_2"],
        "mean": mean.mean,
        "standard_error": mean.error,
        "degrees": mean.degrees,
        "mean_low": low,
        "mean_high": high,
        "mean_absolute": c["absolute"] / c["edges"],
        "variance": np.maximum(c["squares"] / c["edges"] - mean.mean**2, 0),
        "share_positive": c["positive"] / c["edges"],
        "sum": c["total"],
        "z": z,
        "p_mean": np.where(tested, p, np.nan),
        "largest_attribution": c["largest_value"],
        "largest_prompt": -c["largest_prompt"],
        "largest_target_pos": -c["largest_pos"],
        "largest_source_pos": -c["largest_pos"] - offset,
    }
    if counts is not None:
        sources, targets = counts.source.rows(source), counts.target.rows(target)
        often, weight = counts.target.count[targets, offset], counts.target.total[targets, offset]
        with np.errstate(divide="ignore", invalid="ignore"):
            out |= {
                "target_active": often,
                "source_active": counts.source.count[sources, offset],
                "position_pairs": counts.pairs[offset],
                "expected": np.where(often > 0, c["total"] / often, np.nan),
                "twera": np.where(weight > 0, c["weighted"] / weight, np.nan),
            }
    if counts is not None and complete:
        chance, p = undefined.copy(), undefined.copy()
        few = (source[tested], target[tested], offset[tested], c["both_active"][tested])
        chance[tested], p[tested] = estimates.association(counts, *few)
        together = estimates.correlation(counts, source, target, offset, c["product"])
        out |= {"chance": chance, "p_association": p, "correlation": together}
    return out, tested


def finish(derived: Path, final: Path, tests: Tests, facts: Mapping[str, Any]) -> None:
    """Writes the file: what needs all pairs is added, and `facts` about the run."""
    import pyarrow.parquet as pq

    schema = _schema(facts)
    first = tested_first = 0
    with pq.ParquetWriter(final, schema, **encodings(schema)) as writer, Ahead() as ahead:
        for columns in _batches(derived):
            n = len(columns["edges"])
            tested = tests.counted[first : first + n]
            mine = slice(tested_first, tested_first + int(tested.sum()))
            first, tested_first = first + n, mine.stop
            for name, values in (
                ("mean_shrunk", tests.shrunk[mine]),
                ("q_mean", tests.q_mean[mine]),
                ("q_association", tests.q_association[mine]),
            ):
                columns[name] = np.full(n, np.nan)
                columns[name][tested] = values
            ahead.submit(writer.write_table, _table(columns, schema))


def _batches(file: Path) -> Iterator[dict[str, np.ndarray]]:
    """The rows of the file, as many at a time as a row group holds."""
    kept: list[pa.RecordBatch] = []
    for batch in chain(scratch_batches(file), [None]):
        if kept and (batch is None or sum(len(b) for b in kept) + len(batch) > ROWS):
            yield {n: np.concatenate([b.column(n).to_numpy() for b in kept]) for n in STATISTICS}
            kept = []
        kept += [] if batch is None else [batch]


def _schema(facts: Mapping[str, Any]) -> "pa.Schema":
    import pyarrow as pa

    kinds = dict.fromkeys(STATISTICS, pa.float64()) | dict.fromkeys(NAMES, pa.int32())
    kinds |= dict.fromkeys(COUNTS, pa.int64())
    fields = [pa.field(n, kinds[n], metadata={"meaning": text}) for n, text in STATISTICS.items()]
    return pa.schema(fields, metadata={"jaxcircuits": json.dumps(facts)})


def _table(columns: Mapping[str, np.ndarray], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    arrays = []
    for field in schema:
        values = columns[field.name]
        missing = np.isnan(values)
        if pa.types.is_integer(field.type):
            values = np.where(missing, 0, values).astype(field.type.to_pandas_dtype())
        arrays.append(pa.array(values, field.type, mask=missing if missing.any() else None))
    return pa.Table.from_arrays(arrays, schema=schema)
