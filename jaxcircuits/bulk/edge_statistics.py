"""Statistics of edges over a corpus: one row a (target feature, source feature, offset).

The offset is target position minus source position. A part of the corpus is summed into additive tables
(`partial_statistics`), these into `statistics.parquet` (`merge_statistics`), whatever the parts were; what follows from
the sums, and why, stands in `estimates`. Sums are float64. Merging is DuckDB's, out of core; in memory are one p value,
mean and error a tested pair, and the histograms of features.

The mean, and whatever else is of attribution, is over the edges a run kept. Where `top_k` or `min_attribution` cut
some, the file says how many (`edges_cut` in its metadata): `edges`, `both_active` and sums are then those of kept
edges, and what compares joint activations with chance is null.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcircuits.bulk import estimates
from jaxcircuits.bulk.feature_counts import feature_counts, from_table
from jaxcircuits.bulk.pair_sums import KEY, SUMS, pair_sums
from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.run import Run
from jaxcircuits.bulk.statistics_table import derive, finish
from jaxcircuits.bulk.store import write_table
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyarrow.compute import Expression

FILE = "statistics.parquet"
MIN_STORIES = 5

_KEY = ", ".join(f'"{name}"' for name in KEY)
_MERGED = f"""
    SELECT {_KEY}, {", ".join(f"fsum({name}) AS {name}" for name in SUMS)}, max(largest) AS largest
    FROM read_parquet($files) GROUP BY {_KEY} ORDER BY {_KEY}"""
_FEATURES = """
    SELECT side, feature, kind, bin, fsum(count) AS count, fsum(total) AS total, fsum(squares) AS squares
    FROM read_parquet($files) GROUP BY side, feature, kind, bin ORDER BY side, feature, kind, bin"""


def partial_statistics(edges: "pa.Table", activations: "pa.Table", prompts: "pa.Table") -> dict[str, "pa.Table"]:
    """The additive sums of a part of a corpus. All of a prompt lies in one part.

    Args:
        edges: With the columns of `attribution.edges.EDGE_COLUMNS`.
        activations: `side` (0 source, 1 target), `prompt`, `pos`, `feature`, `activation`: all that are active at
            counted positions, of the sources and targets that edges are between. With no rows for one of the sides,
            nothing is said that needs them.
        prompts: `prompt`, `n_tokens`, `first_counted` of the part's prompts.

    Returns:
        `"pairs"`, to be written to `statistics/pairs/`, and `"features"`, to `statistics/features/`.
    """
    return {"pairs": pair_sums(edges), "features": feature_counts(activations, prompts)}


def merge_statistics(
    directory: Path, *, parts: Sequence[str] | None = None, min_stories: int = MIN_STORIES, memory: str = "2GB"
) -> None:
    """Writes `statistics.parquet` from the additive sums in `statistics/`, whole or not at all.

    Args:
        directory: The run.
        parts: File names of the parts that count, such as `part-00000.parquet`; by default all that are there.
        min_stories: Pairs with edges in fewer prompts are neither tested nor shrunk.
        memory: What DuckDB may use; beyond it, it uses the disk.

    Raises:
        InputError: There is no part, or it cannot be read.
    """
    if min_stories < 2:
        raise InputError(f"min_stories must be at least 2 (one story has no error), got {min_stories}.")
    names = sorted(p.name for p in (directory / "statistics" / "pairs").glob("part-*.parquet"))
    names = names if parts is None else list(parts)
    if not names:
        raise InputError(f"there are no statistics to merge in {directory / 'statistics'}; attribute a corpus first.")
    files = {kind: [str(directory / "statistics" / kind / n) for n in names] for kind in ("pairs", "features")}
    with (
        tempfile.TemporaryDirectory(prefix=".merging.", dir=directory / "statistics") as scratch,
        _duckdb(scratch, memory) as db,
    ):
        merged, derived, final = (Path(scratch) / f"{n}.parquet" for n in ("merged", "derived", "final"))
        try:
            counts = from_table(db.sql(_FEATURES, params={"files": files["features"]}).to_arrow_table())
            place = str(merged).replace("'", "''")
            db.execute(f"COPY ({_MERGED}) TO '{place}' (COMPRESSION zstd)", {"files": files["pairs"]})
        except _duckdb_error() as error:
            reason = str(error).splitlines()[0]
            sentence = f"cannot merge the statistics in {directory} ({reason}); make room, or run it again."
            raise InputError(sentence) from None
        cut = _edges_cut(db, directory, names)
        tests = derive(merged, derived, counts, min_stories, complete=not cut)
        facts = {
            "min_stories": min_stories,
            "interval": estimates.LEVEL,
            "tested": int(tests.counted.sum()),
            "hypotheses_association": tests.hypotheses,
            "prior_mean": tests.prior.mean,
            "prior_variance": tests.prior.variance,
            "edges_cut": cut,
        }
        finish(derived, final, tests, facts)
        os.replace(final, directory / FILE)


def statistics_of(
    run: Run, *, rows: "Expression | None" = None, min_stories: int = MIN_STORIES, quiet: bool = False
) -> "pa.Table":
    """The same statistics of a run that did not keep them, from its edges. Reads a part at a time, writes nothing.

    Args:
        run: From `load_run`.
        rows: Only these edges, such as those of one target feature: pairs are then judged among themselves.
        min_stories: As in `merge_statistics`.
        quiet: No progress bar.

    Raises:
        InputError: The run kept no edges.

    >>> import tempfile
    >>> from jaxcircuits import Settings, load_bundle
    >>> from jaxcircuits.bulk import attribute_to_run, read_prompts
    >>> from jaxcircuits.bulk.edge_statistics import statistics_of
    >>> bundle = load_bundle()
    >>> prompts = read_prompts(bundle, texts=["The dog ran.", "The cat ran.", "The dog sat."])
    >>> with tempfile.TemporaryDirectory() as place:
    ...     run, _ = attribute_to_run(bundle, Settings(), prompts, f"{place}/run", quiet=True)
    ...     table = statistics_of(run, min_stories=2, quiet=True)
    ...     sum(table["edges"].to_pylist()) == run.rows("edges")
    True
    """
    import pyarrow.parquet as pq

    kept = [part for part in run.record["parts"] if "edges" in part]
    if not kept:
        raise InputError(f"the run {run.path} kept neither statistics nor edges; run it again with either.")
    prompts = read_prompts_of(run)
    known = {"n_tokens", "first_counted"} <= set(prompts.column_names) and all("activations" in part for part in kept)
    with tempfile.TemporaryDirectory() as scratch, progress(quiet) as bar:
        task = bar.add_task("statistics of edges", total=len(kept))
        for kind in ("statistics/pairs", "statistics/features", "targets"):
            (Path(scratch) / kind).mkdir(parents=True)
        for i, part in enumerate(kept):
            first, last = part["prompts"]
            few = prompts.slice(first, last - first)
            activations = read_part(run, part, "activations") if known else None
            sums = partial_statistics(read_part(run, part, "edges", rows), *_or_nothing(activations, few))
            tables = {f"statistics/{kind}": table for kind, table in sums.items()}
            for kind, table in {**tables, "targets": read_part(run, part, "targets")}.items():
                write_table(Path(scratch) / kind / f"part-{i:05d}.parquet", table)
            bar.update(task, advance=1)
        merge_statistics(Path(scratch), min_stories=min_stories)
        return pq.read_table(Path(scratch) / FILE)


def facts_of(statistics: "pa.Table") -> dict[str, Any]:
    """What a table of statistics says about itself: the minimum of stories, the prior, how many edges were cut."""
    return json.loads((statistics.schema.metadata or {}).get(b"jaxcircuits", b"{}"))


# --- files --------------------------------------------------------------------------------------------


@contextmanager
def _duckdb(scratch: str | None = None, memory: str | None = None) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A database in memory. One thread, so that sums are added in one order and files are the same to the byte."""
    import duckdb

    with duckdb.connect(config={"threads": 1}) as db:
        if memory is not None:
            db.execute(f"SET memory_limit = '{memory}'")
        db.execute(f"SET temp_directory = '{scratch or ''}'")
        yield db


def _duckdb_error() -> type[Exception]:
    import duckdb

    return duckdb.Error


def _edges_cut(db: "duckdb.DuckDBPyConnection", directory: Path, names: Sequence[str]) -> int:
    """How many edges the run did not keep, by its targets."""
    files = [str(p) for n in names if (p := directory / "targets" / n).is_file()]
    if not files:
        return 0
    rows = db.execute("SELECT coalesce(sum(edges_cut), 0) FROM read_parquet($files)", {"files": files}).fetchone()
    return int(rows[0]) if rows else 0


def _or_nothing(activations: "pa.Table | None", prompts: "pa.Table") -> tuple["pa.Table", "pa.Table"]:
    """Activations and the prompts they are counted in; no rows where the run did not keep them."""
    import pyarrow as pa

    if activations is not None:
        return activations, prompts
    none = pa.array([], pa.int32())
    names = ("side", "prompt", "pos", "feature", "activation"), ("prompt", "n_tokens", "first_counted")
    no_activation, no_prompt = (pa.table(dict.fromkeys(n, none)) for n in names)
    return no_activation, no_prompt
