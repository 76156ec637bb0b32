"""Statistics of edges over a corpus: one row a (target feature, source feature, offset).

The offset is target position minus source position. A part of the corpus is brought in order (`partial_statistics`), of
some parts sums are made (`merge_sums`), of all `statistics.parquet` (`merge_statistics`), whatever the parts were; what
follows from the sums, and why, stands in `estimates`. Sums are float64. Merging reads files side by side (`merging`);
in memory are a few numbers a tested pair (`statistics_table.Tests`), and the histograms of features.

The mean, and whatever else is of attribution, is over the edges a run kept. Where `top_k` or `min_attribution` cut
some, the file says how many (`edges_cut` in its metadata): `edges`, `both_active` and sums are then those of kept
edges, and what compares joint activations with chance is null.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcircuits.ahead import Ahead
from jaxcircuits.bulk import estimates
from jaxcircuits.bulk.feature_counts import FEATURES, active_features, counts_of, merged_counts
from jaxcircuits.bulk.pair_edges import Edges, by_target
from jaxcircuits.bulk.pair_sums import PAIRS, PARTS, merged_pairs
from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.run import Run
from jaxcircuits.bulk.scratch import SUFFIX, write_scratch
from jaxcircuits.bulk.statistics_table import finish, judge
from jaxcircuits.bulk.store import write_table
from jaxcircuits.bulk.sum_rows import SUMMED, SumRows, write_rows
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.compute import Expression

FILE = "statistics.parquet"
MIN_STORIES = 5

LAYOUTS = {"pairs": PAIRS, "features": FEATURES}
"""Kinds of sums, each in a directory of its own below `statistics/`."""

AT_ONCE = 16
"""Files of sums that are merged in one go."""


def partial_statistics(edges: "pa.Table | None", activations: "pa.Table", prompts: "pa.Table") -> dict[str, "pa.Table"]:
    """What the additive sums of a part of a corpus are made of. All of a prompt lies in one part.

    Args:
        edges: With the columns of `attribution.edges.EDGE_COLUMNS`; `None` where they are had from elsewhere.
        activations: `side` (0 source, 1 target), `prompt`, `pos`, `feature`, `activation`: all that are active at
            counted positions, of the sources and targets that edges are between. With no rows for one of the sides,
            nothing is said that needs them.
        prompts: `prompt`, `n_tokens`, `first_counted` of the part's prompts.

    Returns:
        `"pairs"`, the edges, and `"features"`, what is active, as sums are made of them: what `statistics/pairs/` and
        `statistics/features/` have of a part, if anything.
    """
    pairs = {} if edges is None else {"pairs": by_target(edges)}
    return pairs | {"features": active_features(activations, prompts)}


def merge_statistics(
    directory: Path,
    *,
    sums: Mapping[str, Sequence[str]] | None = None,
    edges: Edges | None = None,
    targets: Sequence[str] | None = None,
    min_stories: int = MIN_STORIES,
) -> None:
    """Writes `statistics.parquet` from the additive tables in `statistics/`, whole or not at all.

    Args:
        directory: The run.
        sums: Names of the files that count, such as `part-00000.arrow`, by their directory in `statistics/`, in the
            order of their prompts; by default all that are there.
        edges: Of `pairs`, those that are in no file; their prompts come last.
        targets: Names of the files in `targets/` that say how many edges were cut; by default all that are there.
        min_stories: Pairs with edges in fewer prompts are neither tested nor shrunk.

    Raises:
        InputError: There are no sums, or they cannot be read.
    """
    if min_stories < 2:
        raise InputError(f"min_stories must be at least 2 (one story has no error), got {min_stories}.")
    place = directory / "statistics"
    if sums is None:
        every = {kind: (place / kind).glob("*") for kind in LAYOUTS}
        sums = {kind: sorted(p.name for p in files if p.suffix in (SUFFIX, SUMMED)) for kind, files in every.items()}
    if not sums["features"]:
        raise InputError(f"there are no statistics to merge in {place}; attribute a corpus first.")
    if targets is None:
        targets = [p.name for p in (directory / "targets").glob("*.parquet")]
    cut = _edges_cut([directory / "targets" / name for name in targets])
    with tempfile.TemporaryDirectory(prefix=".merging.", dir=place) as temporary, _readable(directory):
        scratch = Path(temporary)
        pairs, features = (
            _few([place / kind / name for name in sums[kind]], kind, scratch / kind) for kind in ("pairs", "features")
        )
        merged, final = scratch / f"merged{SUMMED}", scratch / "final.parquet"
        with Ahead() as beside, merged.open("wb") as file:
            counted = beside.submit(lambda: counts_of(merged_counts(features)))

            def written() -> Iterator[SumRows]:
                for rows in merged_pairs(pairs, edges):
                    write_rows(file, rows)
                    yield rows

            tests = judge(written(), counted.result, min_stories, complete=not cut)
        facts = {
            "min_stories": min_stories,
            "interval": estimates.LEVEL,
            "tested": tests.number,
            "hypotheses_association": tests.hypotheses,
            "prior_mean": tests.prior.mean,
            "prior_variance": tests.prior.variance,
            "edges_cut": cut,
        }
        finish(merged, final, tests, counted.result(), min_stories, facts)
        os.replace(final, directory / FILE)


def merge_sums(to: Any, kind: str, files: Sequence[Path], edges: Edges | None = None) -> None:
    """Merges additive tables of one kind, in the order of their prompts, into one of sums.

    Args:
        to: A file that is open for writing.
        kind: `"pairs"` or `"features"`.
        files: Of earlier prompts.
        edges: Of `pairs`, those that are in no file.

    Raises:
        InputError: One of the files is damaged.
    """
    with _readable(files[0].parent) if files else nullcontext():
        for rows in merged_pairs(files, edges) if kind == "pairs" else merged_counts(files):
            write_rows(to, rows)


def _few(files: Sequence[Path], kind: str, scratch: Path) -> Sequence[Path]:
    """The same sums in no more files than are read at once."""
    scratch.mkdir(exist_ok=True)
    while len(files) > AT_ONCE:
        groups = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
        level = sum(1 for _ in scratch.iterdir())
        files = [scratch / f"{level + i:05d}{SUMMED}" for i in range(len(groups))]
        for name, group in zip(files, groups, strict=True):
            with name.open("wb") as file:
                merge_sums(file, kind, group)
    return files


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
        sums = Path(scratch) / "statistics"
        for place in (sums / "pairs", sums / "features", Path(scratch) / "targets"):
            place.mkdir(parents=True)
        edges = Edges()
        for i, part in enumerate(kept, start=1):
            name, (first, last) = f"part-{i:05d}", part["prompts"]
            few = prompts.slice(first, last - first)
            activations = read_part(run, part, "activations") if known else None
            tables = partial_statistics(read_part(run, part, "edges", rows), *_or_nothing(activations, few))
            edges.add(tables["pairs"])
            if i % PARTS == 0:
                with (sums / "pairs" / f"{name}{SUMMED}").open("wb") as file:
                    merge_sums(file, "pairs", [], edges)
                edges.clear()
            write_scratch(sums / "features" / f"{name}{SUFFIX}", tables["features"])
            write_table(Path(scratch) / "targets" / f"{name}.parquet", read_part(run, part, "targets"))
            bar.update(task, advance=1)
        merge_statistics(Path(scratch), edges=edges, min_stories=min_stories)
        return pq.read_table(Path(scratch) / FILE)


def facts_of(statistics: "pa.Table") -> dict[str, Any]:
    """What a table of statistics says about itself: the minimum of stories, the prior, how many edges were cut."""
    return json.loads((statistics.schema.metadata or {}).get(b"jaxcircuits", b"{}"))


# --- files --------------------------------------------------------------------------------------------


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    """Errors of files as one sentence."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid, KeyError) as error:  # of a column, where another version wrote the file
        reason = str(error).splitlines()[0]
        sentence = f"cannot merge the statistics in {directory} ({reason}); make room, or run it again."
        raise InputError(sentence) from None


def _edges_cut(targets: Sequence[Path]) -> int:
    """How many edges the run did not keep, by its targets."""
    import pyarrow.parquet as pq

    return sum(int(pq.read_table(p, columns=["edges_cut"])["edges_cut"].to_numpy().sum()) for p in targets)


def _or_nothing(activations: "pa.Table | None", prompts: "pa.Table") -> tuple["pa.Table", "pa.Table"]:
    """Activations and the prompts they are counted in; no rows where the run did not keep them."""
    import pyarrow as pa

    if activations is not None:
        return activations, prompts
    none = pa.array([], pa.int32())
    names = ("side", "prompt", "pos", "feature", "activation"), ("prompt", "n_tokens", "first_counted")
    no_activation, no_prompt = (pa.table(dict.fromkeys(n, none)) for n in names)
    return no_activation, no_prompt
