"""`statistics.parquet`: its columns, and how they follow from merged sums, a batch of pairs at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.ahead import each_ahead
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bulk import estimates
from jaxcircuits.bulk.feature_counts import FeatureCounts
from jaxcircuits.bulk.pair_sums import PAIR, PAIRS, features_of
from jaxcircuits.bulk.store import ROWS, encodings
from jaxcircuits.bulk.sum_rows import SumRows, numbers_of, read_rows

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

PIECE = ROWS // 2
"""Pairs at most that are described together: their columns are several times their sums, and some pieces are there at
once."""

NAMES = ("target_feature", "source_feature", "offset")
COUNTS = ("edges", "both_active", "target_active", "source_active", "position_pairs", "stories")
COUNTS += ("largest_prompt", "largest_target_pos", "largest_source_pos")
SURE = (*NAMES, "edges", "both_active", "stories", "effective_stories", "mean", "mean_absolute", "variance")
SURE += ("share_positive", "sum", "z", "largest_attribution", *COUNTS[-3:])  # never null
RATIOS = ("effective_stories", "degrees", "share_positive")  # of small counts, so that they repeat


_JUDGED = ("mean", "error", "scale", "p_mean", "chance", "p_association")


class Tests:
    """What a run as a whole is judged by, one entry a tested pair."""

    def __init__(self, found: list[tuple[np.ndarray, ...]], hypotheses: int | None) -> None:
        mean, error, scale, p_mean, self.chance, self.p_association = (
            np.concatenate([np.zeros(0), *(f[i] for f in found)]) for i in range(len(_JUDGED))
        )
        self.number = len(mean)
        self.hypotheses = hypotheses
        self.prior = estimates.fit_prior(mean, error, scale)
        self.shrunk = estimates.shrink(mean, error, scale, self.prior)
        families = [(p_mean, None), (self.p_association, hypotheses)]
        self.q_mean, self.q_association = each_ahead(lambda of: estimates.false_discovery(*of), families)


def judge(
    merged: Iterable[SumRows], counted: Callable[[], FeatureCounts | None], least: int, *, complete: bool
) -> Tests:
    """Looks at all pairs before anything is said of one.

    Args:
        merged: Sums, one row a pair, some at a time.
        counted: Those of features, waited for on another thread; `None` where they are unknown.
        least: Stories that a tested pair has at least.
        complete: Whether no edge was cut, so that joint activations can be compared with chance.
    """

    def look(rows: SumRows) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        offsets = np.flatnonzero(np.bincount(features_of(rows[:, 0])["offset"]))
        tested = rows[numbers_of(rows)[:, PAIRS.numbers.index("stories")] >= least]
        return offsets, _judged(_columns(tested), counted() if complete else None)

    looked = list(each_ahead(look, merged))
    counts = counted() if complete else None
    hypotheses = None
    if counts is not None:  # every pair that could have been found, whether it was or not
        often = [int((side.stories >= least).sum()) for side in (counts.source, counts.target)]
        offsets = set().union(*(offsets.tolist() for offsets, _ in looked))
        hypotheses = max(often[0] * often[1] * len(offsets), sum(len(found[0]) for _, found in looked))
    return Tests([found for _, found in looked], hypotheses)


def _judged(c: Columns, counts: FeatureCounts | None) -> tuple[np.ndarray, ...]:
    """The columns `_JUDGED` of tested pairs."""
    mean = _mean(c)
    _, p = estimates.zero_mean(c["total"], c["story_squares"], c["stories"])
    chance, p_association = (np.full(len(p), np.nan) for _ in range(2))
    if counts is not None:
        source, target, offset = c["source_feature"], c["target_feature"], c["offset"]
        chance, p_association = estimates.association(counts, source, target, offset, c["both_active"])
    return mean.mean, mean.error, c["absolute"] / c["edges"], p, chance, p_association


def _mean(c: Columns) -> estimates.Mean:
    return estimates.clustered_mean(
        c["edges"], c["total"], c["story_squares"], c["story_cross"], c["edges_2"], c["edges_3"]
    )


def finish(
    file: Path, final: Path, tests: Tests, counts: FeatureCounts | None, least: int, facts: Mapping[str, Any]
) -> None:
    """Writes `statistics.parquet` from merged sums and what `judge` found, with `facts` about the run."""
    import pyarrow.parquet as pq

    schema = _schema(facts)

    def pieces() -> Iterator[tuple[Columns, np.ndarray, slice]]:
        first = 0
        for c in map(_columns, read_rows(file, PAIRS.cells, PIECE)):
            tested = c["stories"] >= least
            mine = slice(first, first + int(tested.sum()))
            first = mine.stop
            yield c, tested, mine

    def described(piece: tuple[Columns, np.ndarray, slice]) -> "pa.Table":
        return _table(_described(*piece, tests, counts), schema)

    with pq.ParquetWriter(final, schema, **encodings(schema, RATIOS)) as writer:
        for table in each_ahead(described, pieces(), threads=1):
            writer.write_table(table)


def _described(
    c: Columns, tested: np.ndarray, mine: slice, tests: Tests, counts: FeatureCounts | None
) -> dict[str, np.ndarray]:
    """All columns of some pairs; `mine` are the entries of those that are tested."""
    n = len(tested)

    def judged(values: np.ndarray) -> np.ndarray:
        out = np.full(n, np.nan)
        out[tested] = values
        return out

    mean = _mean(c)
    low, high = estimates.confidence_interval(mean)
    z, p = estimates.zero_mean(c["total"], c["story_squares"], c["stories"])
    target, source, offset = c["target_feature"], c["source_feature"], c["offset"]
    out = dict.fromkeys(STATISTICS, np.full(n, np.nan)) | {
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
        "mean_shrunk": judged(tests.shrunk[mine]),
        "mean_absolute": c["absolute"] / c["edges"],
        "variance": np.maximum(c["squares"] / c["edges"] - mean.mean**2, 0),
        "share_positive": c["positive"] / c["edges"],
        "sum": c["total"],
        "z": z,
        "p_mean": np.where(tested, p, np.nan),
        "q_mean": judged(tests.q_mean[mine]),
        "chance": judged(tests.chance[mine]),
        "p_association": judged(tests.p_association[mine]),
        "q_association": judged(tests.q_association[mine]),
        "largest_attribution": c["largest_value"],
        "largest_prompt": c["largest_prompt"],
        "largest_target_pos": c["largest_pos"],
        "largest_source_pos": c["largest_pos"] - offset,
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
    if counts is not None and tests.hypotheses is not None:
        out["correlation"] = estimates.correlation(counts, source, target, offset, c["product"])
    return out


def _columns(rows: SumRows) -> Columns:
    """A column for each sum and for each feature."""
    columns = PAIRS.columns(rows)
    return columns | features_of(columns.pop(PAIR))


def _schema(facts: Mapping[str, Any]) -> "pa.Schema":
    import pyarrow as pa

    kinds = dict.fromkeys(STATISTICS, pa.float64()) | dict.fromkeys(NAMES, pa.int32())
    kinds |= dict.fromkeys(COUNTS, pa.int64())
    fields = [pa.field(n, kinds[n], n not in SURE, {"meaning": text}) for n, text in STATISTICS.items()]
    return pa.schema(fields, metadata={"jaxcircuits": json.dumps(facts)})


def _table(columns: Mapping[str, np.ndarray], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    arrays = []
    for field in schema:
        values = columns[field.name]
        missing = np.isnan(values) if field.nullable else None
        if pa.types.is_integer(field.type):
            values = (values if missing is None else np.where(missing, 0, values)).astype(field.type.to_pandas_dtype())
        arrays.append(pa.array(values, field.type, mask=missing))
    return pa.Table.from_arrays(arrays, schema=schema)
