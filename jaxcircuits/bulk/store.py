"""A run on disk while it is written: parts as Parquet, and `run.json`, which names those that count.

Whatever is written first and named last: a part that a kill left half-written, or whole but not named, is computed
again. One process writes `run.json`; others leave a note beside it, which that one takes up.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxcircuits.ahead import each_ahead
from jaxcircuits.bulk.scratch import SUFFIX, write_scratch
from jaxcircuits.errors import InputError
from jaxcircuits.places import Place

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 3

RECORD, NOTES = "run.json", ".notes"

SUMS = "statistics"
"""Directory of the additive sums that statistics are merged from."""

ROWS = 2**17
"""Rows a row group: what is read to have one row."""


class Store:
    """Parts of a run and its record.

    Args:
        place: The run's directory.
        record: What `run.json` says so far.
    """

    def __init__(self, place: Place, record: dict[str, Any]) -> None:
        self.place = place
        self.record = record

    @property
    def done(self) -> set[int]:
        """Numbers of the parts that count."""
        return {part["part"] for part in self.record["parts"]}

    def save(self) -> None:
        """Writes `run.json`; its entries have one order, whichever was there first."""
        self.record["files"] = dict(sorted(self.record["files"].items()))
        self.place.write(RECORD, _json(self.record))

    def write_part(self, number: int, entry: Mapping[str, Any], tables: Mapping[str, "pa.Table"]) -> dict[str, Any]:
        """Writes the files of a part, some at once, and returns its entry, with which it does not count yet."""

        def write(kind: str) -> dict[str, Any]:
            summed = kind.startswith(SUMS)
            name = f"{kind}/part-{number:05d}{SUFFIX if summed else '.parquet'}"
            with self.place.new_file(name) as file:
                (write_scratch if summed else write_table)(file, tables[kind])
            return {"file": name, "rows": tables[kind].num_rows, **file_entry(self.place, name)}

        files = dict(zip(tables, each_ahead(write, tables), strict=True))
        return {"part": number, **entry, **files}

    def count(self, *entries: dict[str, Any]) -> None:
        """Lets parts count, and the sums that came with them."""
        spans = [span for entry in entries if (span := move_sums(entry)) is not None]
        self.record["parts"] = sorted([*self.record["parts"], *entries], key=lambda part: part["part"])
        self.record["sums"] = sorted([*self.record["sums"], *spans], key=lambda span: span["parts"])
        self.save()

    def note(self, entry: Mapping[str, Any]) -> None:
        """Leaves a part's entry for the process that writes `run.json`."""
        self.place.write(f"{NOTES}/part-{entry['part']:05d}.json", _json(entry))

    def take_up_notes(self) -> None:
        """Lets the parts count that other processes finished.

        Raises:
            InputError: One of them stopped.
        """
        notes = self.place.sizes(NOTES)
        entries = [json.loads(self.place.read(name)) for name in sorted(notes)]
        stopped = [entry for entry in entries if "stopped" in entry]
        if stopped:
            raise InputError(f"process {stopped[0]['process']} stopped: {stopped[0]['stopped']}")
        new = [entry for entry in entries if entry["part"] not in self.done]
        if new:
            self.count(*new)

    def note_stop(self, process: int, sentence: str) -> None:
        """Says that a process goes no further."""
        self.place.write(f"{NOTES}/stopped-{process:03d}.json", _json({"process": process, "stopped": sentence}))

    def remove_notes(self, prefix: str = "") -> None:
        """Removes what processes left for each other."""
        for name in self.place.sizes(NOTES):
            if name.startswith(f"{NOTES}/{prefix}"):
                self.place.remove(name)
        if self.place.local is not None and (self.place.local / NOTES).is_dir() and not prefix:
            (self.place.local / NOTES).rmdir()

    def drop_damaged(self) -> list[int]:
        """Lets no part count that is not whole, or whose sums are not. Returns the numbers of those parts.

        Looked at are the sizes of all files, and every byte of the newest part's.
        """
        sizes = self.place.sizes()

        def damaged(entry: Mapping[str, Any], *, every_byte: bool) -> bool:
            return any(
                sizes.get(f["file"]) != f["bytes"] or (every_byte and self.place.sha256(f["file"]) != f["sha256"])
                for f in files_of(entry)
            )

        parts, spans = self.record["parts"], self.record["sums"]
        newest = parts[-1]["part"] if parts else -1
        bad = [part["part"] for part in parts if damaged(part, every_byte=part["part"] == newest)]
        unsummed = [s for s in spans if damaged(s, every_byte=s["parts"][1] == newest + 1)]
        if bad or unsummed:
            bad += [part["part"] for part in parts if part["part"] not in bad and is_summed(unsummed, part["part"])]
            self.record["parts"] = [part for part in parts if part["part"] not in bad]
            self.record["sums"] = [span for span in spans if span not in unsummed]
            self.save()
        return sorted(bad)


def files_of(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files that a part's entry names."""
    return [entry for entry in part.values() if isinstance(entry, Mapping) and "file" in entry]


def move_sums(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Takes the files of sums out of a part's entry; what `sums` says of them, `None` where there are none."""
    found = {name.removeprefix(f"{SUMS}/"): entry.pop(name) for name in list(entry) if name.startswith(f"{SUMS}/")}
    return {"parts": [entry["part"], entry["part"] + 1], **found} if found else None


def is_summed(spans: Sequence[Mapping[str, Any]], part: int) -> bool:
    """Whether a part is in some sums."""
    return any(first <= part < last for first, last in (span["parts"] for span in spans))


def file_entry(place: Place, name: str) -> dict[str, Any]:
    """What a record says of a file."""
    return {"bytes": place.size(name), "sha256": place.sha256(name)}


def read_record(place: Place) -> dict[str, Any] | None:
    """What `run.json` says; `None` where there is none.

    Raises:
        InputError: It is no run's, or another version wrote it.
    """
    if not place.exists(RECORD):
        return None
    try:
        record = json.loads(place.read(RECORD))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(
            f"{place.name}/{RECORD}: expected a run of schema {SCHEMA}; run it again with this version, "
            "with --overwrite to replace it."
        )
    return record


def write_table(to: Any, table: "pa.Table") -> None:
    """Writes a table as a Parquet file: to a path, or to what is open for writing."""
    import pyarrow.parquet as pq

    pq.write_table(table, to, row_group_size=ROWS, **encodings(table.schema))


def encodings(schema: "pa.Schema", few: Sequence[str] = ()) -> dict[str, Any]:
    """How Parquet files are written: zstd, alone or after an encoding that helps it.

    Args:
        schema: What is written.
        few: Doubles that repeat, which a dictionary suits.

    Numbers of 32 bits are those of edges: they repeat in runs, or not at all, so that an encoding takes longer than it
    saves. In statistics' doubles, sorted into their first, second ... bytes, zstd finds more.
    """
    import pyarrow as pa

    plain = [field.name for field in schema if field.type in (pa.int8(), pa.int32(), pa.float32())]
    doubles = [field.name for field in schema if field.type == pa.float64() and field.name not in few]
    others = [name for name in schema.names if name not in (*plain, *doubles)]
    return {"compression": "zstd", "use_dictionary": others or False, "use_byte_stream_split": doubles or False}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
