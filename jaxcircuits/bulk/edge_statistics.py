"""Statistics of edges over a corpus: one row a (target feature, source feature, offset).

The offset is target position minus source position. A part of the corpus is summed into additive tables
(`partial_statistics`), these into `statistics.parquet` (`merge_statistics`), whatever the parts were; what follows from
the sums, and why, stands in `estimates`. Sums are float64. Merging reads files side by side (`merging`); in memory are
a few numbers a tested pair (`statistics_table.Tests`), and the histograms of features.

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
from jaxcircuits.bulk.feature_counts import FEATURES, feature_counts, from_table
from jaxcircuits.bulk.merging import Layout, merged, write_merged
from jaxcircuits.bulk.pair_sums import PAIRS, pair_sums
from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.run import Run
from jaxcircuits.bulk.scratch import SUFFIX, write_scratch
from jaxcircuits.bulk.statistics_table import finish, judge
from jaxcircuits.bulk.store import write_table
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
"""Files that are merged in one go."""


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
    directory: Path,
    *,
    sums: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    min_stories: int = MIN_STORIES,
) -> None:
    """Writes `statistics.parquet` from the additive sums in `statistics/`, whole or not at all.

    Args:
        directory: The run.
        sums: Names of the files of sums that count, such as `part-00000.arrow`, in the order of their prompts; by
            default all that are there.
        targets: Names of the files in `targets/` that say how many edges were cut; by default all that are there.
        min_stories: Pairs with edges in fewer prompts are neither tested nor shrunk.

    Raises:
        InputError: There are no sums, or they cannot be read.
    """
    import pyarrow as pa

    if min_stories < 2:
        raise InputError(f"min_stories must be at least 2 (one story has no error), got {min_stories}.")
    place = directory / "statistics"
    names = sorted(p.name for p in (place / "pairs").glob(f"*{SUFFIX}")) if sums is None else sums
    if not names:
        raise InputError(f"there are no statistics to merge in {place}; attribute a corpus first.")
    if targets is None:
        targets = [p.name for p in (directory / "targets").glob("*.parquet")]
    cut = _edges_cut([directory / "targets" / name for name in targets])
    with tempfile.TemporaryDirectory(prefix=".merging.", dir=place) as temporary, _readable(directory):
        scratch = Path(temporary)
        pairs, features = (
            _few([place / kind / name for name in names], layout, scratch / kind) for kind, layout in LAYOUTS.items()
        )
        counts = from_table(pa.concat_tables([FEATURES.schema.empty_table(), *merged(features, FEATURES)]))
        every, final = scratch / f"every{SUFFIX}", scratch / "final.parquet"
        tests = judge(merged(pairs, PAIRS), every, counts, min_stories, complete=not cut)
        facts = {
            "min_stories": min_stories,
            "interval": estimates.LEVEL,
            "tested": tests.number,
            "hypotheses_association": tests.hypotheses,
            "prior_mean": tests.prior.mean,
            "prior_variance": tests.prior.variance,
            "edges_cut": cut,
        }
        finish(every, final, tests, counts, min_stories, facts)
        os.replace(final, directory / FILE)


def merge_sums(files: Sequence[Path], kind: str, to: Any) -> None:
    """Merges additive sums of one kind, in the order of their prompts, into one file, open for writing.

    Raises:
        InputError: One of the files is damaged.
    """
    with _readable(files[0].parent):
        write_merged(to, files, LAYOUTS[kind])


def _few(files: Sequence[Path], layout: Layout, scratch: Path) -> Sequence[Path]:
    """The same sums in no more files than are read at once."""
    scratch.mkdir(exist_ok=True)
    while len(files) > AT_ONCE:
        groups = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
        level = sum(1 for _ in scratch.iterdir())
        files = [scratch / f"{level + i:05d}{SUFFIX}" for i in range(len(groups))]
        for file, group in zip(files, groups, strict=True):
            write_merged(file, group, layout)
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
        for kind in ("statistics/pairs", "statistics/features", "targets"):
            (Path(scratch) / kind).mkdir(parents=True)
        for i, part in enumerate(kept):
            first, last = part["prompts"]
            few = prompts.slice(first, last - first)
            activations = read_part(run, part, "activations") if known else None
            sums = partial_statistics(read_part(run, part, "edges", rows), *_or_nothing(activations, few))
            for kind, table in sums.items():
                write_scratch(Path(scratch) / "statistics" / kind / f"part-{i:05d}{SUFFIX}", table)
            write_table(Path(scratch) / "targets" / f"part-{i:05d}.parquet", read_part(run, part, "targets"))
            bar.update(task, advance=1)
        merge_statistics(Path(scratch), min_stories=min_stories)
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
    except (OSError, pa.ArrowInvalid) as error:
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
