"""Which files hold the additive sums of a run's parts, and fewer of them as parts come to count.

`run.json` lists them under `sums`: first part and last, the latter excluded, and a file of each kind. Neighbours are
merged as soon as `GROUP` of one size are there, aligned to their size, so the files are the same whatever a run was
interrupted by, and as many as a number's digits, not as parts.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxcircuits.bulk.edge_statistics import FILE as STATISTICS
from jaxcircuits.bulk.edge_statistics import LAYOUTS, merge_statistics, merge_sums
from jaxcircuits.bulk.scratch import SUFFIX
from jaxcircuits.bulk.store import SUMS, Store, file_entry
from jaxcircuits.places import Place

GROUP = 8

Span = Mapping[str, Any]


def compact(store: Store) -> None:
    """Merges neighbours as long as there are enough of one size.

    Raises:
        InputError: A file of sums is damaged, or the merged one cannot be written.
    """
    while (found := _mergeable(store.record["sums"])) is not None:
        first, last = found[0]["parts"][0], found[-1]["parts"][1]
        merged: dict[str, Any] = {"parts": [first, last]}
        for kind in LAYOUTS:
            name = f"{SUMS}/{kind}/parts-{first:05d}-{last:05d}{SUFFIX}"
            files = [span[kind]["file"] for span in found]
            with _local(store.place, files) as directory, store.place.new_file(name) as file:
                merge_sums([directory / f for f in files], kind, file)
            merged[kind] = {"file": name, **file_entry(store.place, name)}
        others = [span for span in store.record["sums"] if span not in found]
        store.record["sums"] = sorted([*others, merged], key=lambda span: span["parts"])
        store.save()
        for span in found:
            for kind in LAYOUTS:
                store.place.remove(span[kind]["file"])


def _mergeable(spans: Sequence[Span]) -> list[Span] | None:
    """`GROUP` neighbours of one size that together are a span of the next."""
    by_group: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        first, last = span["parts"]
        by_group.setdefault((last - first, first // ((last - first) * GROUP)), []).append(span)
    return next((group for group in by_group.values() if len(group) == GROUP), None)


def merge(store: Store) -> None:
    """Writes `statistics.parquet` from all sums.

    Raises:
        InputError: A file of sums is damaged, or there is no room.
    """
    spans, parts = store.record["sums"], store.record["parts"]
    names = [span[kind]["file"] for span in spans for kind in LAYOUTS]
    targets = [part["targets"]["file"] for part in parts]
    with _local(store.place, [*names, *targets]) as directory:
        merge_statistics(
            directory,
            sums=[Path(span["pairs"]["file"]).name for span in spans],
            targets=[Path(name).name for name in targets],
        )
        if store.place.local is None:
            store.place.write(STATISTICS, (directory / STATISTICS).read_bytes())


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
