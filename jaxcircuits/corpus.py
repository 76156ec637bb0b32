"""Texts one after another from a file: `.txt`, `.jsonl` or `.parquet`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jaxcircuits.errors import InputError
from jaxcircuits.files import read_text

END_OF_TEXT = "<|endoftext|>"


def read_corpus(path: str | os.PathLike) -> Iterator[str]:
    """Yields the texts of a corpus, in order, each without surrounding white space; blank ones are left out.

    Args:
        path: A `.txt` (separated by `<|endoftext|>` where that occurs, else one text a line), or a `.jsonl`
            or `.parquet` with a field `text`.

    Raises:
        InputError: The file is missing, of another kind, not UTF-8, broken, or holds no text.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from jaxcircuits import read_corpus
    >>> with TemporaryDirectory() as directory:
    ...     file = Path(directory) / "two.txt"
    ...     _ = file.write_text("One day.\\n<|endoftext|>\\nThe end.\\n")
    ...     list(read_corpus(file))
    ['One day.', 'The end.']
    """
    path = Path(path)
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"corpus: expected a .txt, .jsonl or .parquet file, got {path}; convert it to one of these.")
    empty = True
    for text in readers[path.suffix](path):
        if text.strip():
            empty = False
            yield text.strip()
    if empty:
        raise InputError(f"corpus: {path} holds no text; expected at least one prompt.")


def _read_txt(path: Path) -> Iterator[str]:
    content = read_text(path, "corpus")
    yield from content.split(END_OF_TEXT) if END_OF_TEXT in content else content.splitlines()


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_text(path, "corpus").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"corpus: line {number} of {path} is not JSON ({reason}); mend or drop it.") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError(f"corpus: line {number} of {path} has no field 'text' with a string in it.")
        yield record["text"]


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise InputError(f"corpus: {path} has no column 'text', only {', '.join(file.schema_arrow.names)}.")
        for batch in file.iter_batches(columns=["text"]):
            for text in batch.column("text").to_pylist():
                if not isinstance(text, str):
                    raise InputError(f"corpus: the column 'text' of {path} holds {text!r}, expected strings.")
                yield text
    except FileNotFoundError:
        raise InputError(f"corpus: there is no file {path}; check the path.") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"corpus: {path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
