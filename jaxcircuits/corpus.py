"""Texts one after another from a file of any size: `.txt`, `.jsonl` or `.parquet`, at a path or a URL."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from jaxcircuits.errors import InputError
from jaxcircuits.places import Where, opened

END_OF_TEXT = "<|endoftext|>"

LONGEST = 2**26
"""Bytes of a record at most: a file without line ends must not fill the memory."""

BLOCK = 2**20

Skip = Callable[[str], None]
"""Told what is left out and why."""


def read_corpus(path: Where, skip: Skip | None = None) -> Iterator[str]:
    """Yields the texts of a corpus, in order, each without surrounding white space; blank ones are left out.

    The file is read a piece at a time, so it may be larger than the memory.

    Args:
        path: A `.txt` (separated by `<|endoftext|>` where that occurs, else one text a line), or a `.jsonl`
            or `.parquet` with a field `text`; a path or a URL that fsspec knows.
        skip: Takes a sentence for each record that cannot be used, which is left out; without it, that is an error.

    Raises:
        InputError: The file is missing, of another kind, or holds no text; without `skip`, a record is not UTF-8,
            broken, or longer than 64 MB.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from jaxcircuits import read_corpus
    >>> with TemporaryDirectory() as directory:
    ...     file = Path(directory) / "two.txt"
    ...     _ = file.write_text("One day.\\n<|endoftext|>\\nThe end.\\n")
    ...     list(read_corpus(file))
    ['One day.', 'The end.']
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    suffix = PurePath(os.fspath(path)).suffix
    if suffix not in readers:
        raise InputError(f"corpus: expected a .txt, .jsonl or .parquet file, got {path}; convert it to one of these.")
    empty = True
    for text in readers[suffix](path, skip or _refuse):
        if text.strip():
            empty = False
            yield text.strip()
    if empty:
        raise InputError(f"corpus: {path} holds no text; expected at least one prompt.")


def _refuse(sentence: str) -> None:
    raise InputError(f"corpus: {sentence}")


def _read_txt(path: Where, skip: Skip) -> Iterator[str]:
    with opened(path, "corpus") as file:
        separator = END_OF_TEXT.encode()
        separated = _holds(file, separator)
        file.seek(0)
        for number, offset, record in _records(file, separator if separated else b"\n"):
            text = _decoded(path, "text" if separated else "line", number, offset, record, skip)
            if text is not None:
                # As a file that is opened as text has them: every kind of line end is one.
                yield from [text.replace("\r\n", "\n").replace("\r", "\n")] if separated else text.splitlines()


def _read_jsonl(path: Where, skip: Skip) -> Iterator[str]:
    with opened(path, "corpus") as file:
        for number, offset, line in _records(file, b"\n"):
            text = _decoded(path, "line", number, offset, line, skip)
            if text is None or not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                skip(f"line {number} of {path} is not JSON ({reason}); mend or drop it.")
                continue
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                skip(f"line {number} of {path} has no field 'text' with a string in it.")
                continue
            yield record["text"]


def _read_parquet(path: Where, skip: Skip) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path, "corpus") as file:
        try:
            table = pq.ParquetFile(file)
            if "text" not in table.schema_arrow.names:
                raise InputError(f"corpus: {path} has no column 'text', only {', '.join(table.schema_arrow.names)}.")
            for batch in table.iter_batches(columns=["text"], batch_size=1024):
                for text in batch.column("text").to_pylist():
                    if isinstance(text, str):
                        yield text
                    else:
                        skip(f"the column 'text' of {path} holds {text!r:.80}, expected strings.")
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"corpus: {path} cannot be read as Parquet ({reason}).") from None


def _holds(file: Any, separator: bytes) -> bool:
    """Whether a file holds some bytes."""
    last = b""
    while block := file.read(BLOCK):
        last += block
        if separator in last:
            return True
        last = last[-len(separator) :]
    return False


def _records(file: Any, separator: bytes) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, offset and bytes of each record; no bytes for one that is too long."""
    number, start, rest, overlong = 1, 0, b"", False
    if file.read(3) != b"\xef\xbb\xbf":  # Windows' editors begin a file with a byte-order mark
        file.seek(0)
    else:
        start = 3
    while True:
        block = file.read(BLOCK)
        *records, rest = (rest + block).split(separator)
        for record in records:
            yield number, start, None if overlong or len(record) > LONGEST else record
            number, start, overlong = number + 1, start + len(record) + len(separator), False
        if len(rest) > LONGEST:  # forget it, but for what the separator may begin in
            overlong, kept = True, len(rest) - len(separator)
            start, rest = start + kept, rest[kept:]
        if not block:
            if rest or overlong:
                yield number, start, None if overlong else rest
            return


def _decoded(path: Where, what: str, number: int, offset: int, record: bytes | None, skip: Skip) -> str | None:
    if record is None:
        skip(f"{what} {number} of {path} is longer than {LONGEST / 2**20:.0f} MB; split it.")
        return None
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        bad, at = error.object[error.start], offset + error.start
        skip(f"{what} {number} of {path} is not UTF-8 (byte {bad:#04x} at offset {at}); save it as UTF-8.")
        return None
