"""The additive sums of a run's parts, and fewer files of them as parts come to count.

`run.json` lists them under `sums`: first part and last, the latter excluded, and a file of each kind. Neighbours are
merged as soon as enough of one size are there, aligned to their size, so the files are the same whatever a run was
interrupted by, and as many as a number's digits, not as parts.

Where edges are kept, a part has no file of pairs: its edges wait in memory until those of `PARTS` parts are summed, and
are read from the part again where a run goes on.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jaxcircuits.bulk.edge_statistics import AT_ONCE, LAYOUTS, merge_statistics, merge_sums
from jaxcircuits.bulk.edge_statistics import FILE as STATISTICS
from jaxcircuits.bulk.pair_edges import EDGE, TARGET, Edges, by_target
from jaxcircuits.bulk.pair_sums import PARTS
from jaxcircuits.bulk.store import SUMS, Store, file_entry
from jaxcircuits.bulk.sum_rows import SUMMED
from jaxcircuits.errors import InputError
from jaxcircuits.places import Place

if TYPE_CHECKING:
    import pyarrow as pa

Span = Mapping[str, Any]


class Sums:
    """The sums of a run.

    Args:
        store: The run.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._edges, self._held = Edges(), list[int]()

    def hold(self, part: int, edges: "pa.Table") -> None:
        """Takes a copy of a part's edges, which can be had again."""
        self._edges.add(by_target(edges))
        self._held.append(part)

    def compact(self) -> None:
        """Merges neighbours as long as there are enough of one size.

        Raises:
            InputError: A file is damaged, or the merged one cannot be written.
        """
        store = self.store
        while (found := _mergeable(store.record["sums"])) is not None:
            first, last = found[0]["parts"][0], found[-1]["parts"][1]
            merged: dict[str, Any] = {"parts": [first, last]}
            for kind in LAYOUTS:
                name = f"{SUMS}/{kind}/parts-{first:05d}-{last:05d}{SUMMED}"
                files = _files(found, kind)
                edges = self._edges_of(found) if kind == "pairs" else None
                with _local(store.place, files) as directory, store.place.new_file(name) as file:
                    merge_sums(file, kind, [directory / f for f in files], edges)
                merged[kind] = {"file": name, **file_entry(store.place, name)}
            others = [span for span in store.record["sums"] if span not in found]
            store.record["sums"] = sorted([*others, merged], key=lambda span: span["parts"])
            store.save()
            for file in (file for kind in LAYOUTS for file in _files(found, kind)):
                store.place.remove(file)
            if any("pairs" not in span for span in found):
                self._forget()

    def merge(self) -> None:
        """Writes `statistics.parquet`.

        Raises:
            InputError: A file is damaged, or there is no room.
        """
        self.compact()
        place, spans = self.store.place, self.store.record["sums"]
        files = {kind: _files(spans, kind) for kind in LAYOUTS}
        targets = [part["targets"]["file"] for part in self.store.record["parts"]]
        with _local(place, [*(name for names in files.values() for name in names), *targets]) as directory:
            merge_statistics(
                directory,
                sums={kind: [Path(name).name for name in names] for kind, names in files.items()},
                edges=self._edges_of(spans),
                targets=[Path(name).name for name in targets],
            )
            if place.local is None:
                place.write(STATISTICS, (directory / STATISTICS).read_bytes())

    def _edges_of(self, spans: Sequence[Span]) -> Edges | None:
        """The edges of the parts that have no file of pairs; read again unless just these are held."""
        parts = [span["parts"][0] for span in spans if "pairs" not in span]
        if parts and parts != self._held:
            self._forget()
            for part in parts:
                self.hold(part, self._read(part))
        return self._edges if parts else None

    def _forget(self) -> None:
        self._edges.clear()
        self._held.clear()

    def _read(self, part: int) -> "pa.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = next(entry["edges"]["file"] for entry in self.store.record["parts"] if entry["part"] == part)
        try:
            with self.store.place.open(name) as file:
                return pq.read_table(file, columns=[*TARGET, *EDGE])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read {name} ({str(error).splitlines()[0]}); run it again.") from None


def _files(spans: Sequence[Span], kind: str) -> list[str]:
    return [span[kind]["file"] for span in spans if kind in span]


def _mergeable(spans: Sequence[Span]) -> list[Span] | None:
    """Enough neighbours of one size that together are a span of the next."""
    by_group: dict[tuple[int, int, int], list[Span]] = {}
    for span in spans:
        first, last = span["parts"]
        size = last - first
        enough = PARTS if size == 1 else AT_ONCE
        by_group.setdefault((enough, size, first // (size * enough)), []).append(span)
    return next((group for (enough, *_), group in by_group.items() if len(group) == enough), None)


def remove_sums(place: Place) -> None:
    """Removes all sums: what was merged from them says more, in less room."""
    for name in place.sizes(SUMS):
        place.remove(name)
    if place.local is not None:
        shutil.rmtree(place.local / SUMS, ignore_errors=True)


@contextmanager
def _local(place: Place, names: Sequence[str]) -> Iterator[Path]:
    """A directory on this machine that holds some files of a place: the place itself, or a copy."""
    if place.local is not None:
        yield place.local
        return
    with TemporaryDirectory() as directory:
        for name in names:
            (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
            place.fetch(name, Path(directory))
        yield Path(directory)
