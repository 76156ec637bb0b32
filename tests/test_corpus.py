"""Corpora as people save them, and as they break them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", b"one\ntwo"),
        ("blank lines.txt", b"\n one \n\n  \ntwo\n\n"),
        ("windows.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"),
        ("separated.txt", b"one\n<|endoftext|>\ntwo"),
        ("separator at the end.txt", b"one\n<|endoftext|>\ntwo\n<|endoftext|>\n"),
        ("separators only between.txt", b"<|endoftext|><|endoftext|>one<|endoftext|>two"),
        ("records.jsonl", b'{"text": "one"}\n{"text": "two", "id": 3}'),
        ("windows.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n'),
        ("blank.jsonl", b'{"text": "one"}\n\n{"text": ""}\n{"text": "two"}\n'),
    ],
)
def test_two_texts(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    assert list(read_corpus(name)) == ["one", "two"]


def test_a_text_of_several_lines_stays_one() -> None:
    Path("c.txt").write_text("one\nmore\n<|endoftext|>\ntwo\u2028too")
    assert list(read_corpus("c.txt")) == ["one\nmore", "two\u2028too"]
    Path("c.jsonl").write_text(json.dumps({"text": "one\nmore"}) + "\n" + '{"text": "two\u2028too"}')
    assert list(read_corpus("c.jsonl")) == ["one\nmore", "two\u2028too"]


def test_parquet() -> None:
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["one", " ", "two"]}), "c.parquet", row_group_size=1)
    assert list(read_corpus("c.parquet")) == ["one", "two"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"words": ["one"]}, "has no column 'text', only words"),
        ({"text": [1]}, "holds 1, expected strings"),
        ({"text": ["one", None]}, "holds None, expected strings"),
        ({"text": pa.array([], pa.string())}, "holds no text"),
    ],
)
def test_parquet_that_is_refused(columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), "c.parquet")
    with pytest.raises(InputError, match=message):
        list(read_corpus("c.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"", "holds no text"),
        ("c.txt", b" \n<|endoftext|>\n", "holds no text"),
        ("c.txt", "Größe".encode("latin-1"), "not UTF-8 .byte 0xf6 at offset 2"),
        ("c.jsonl", b'{"text": "one"}\n{"text": ', "line 2 of c.jsonl is not JSON"),
        ("c.jsonl", b'{"words": "one"}', "line 1 of c.jsonl has no field 'text'"),
        ("c.jsonl", b'{"text": 3}', "has no field 'text' with a string"),
        ("c.jsonl", b'["one"]', "has no field 'text'"),
        ("c.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1 of c.jsonl is not JSON"),
        ("c.jsonl", b"[" * 100_000, "line 1 of c.jsonl is not JSON"),
        ("c.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
        ("c.csv", b"text\none", "expected a .txt, .jsonl or .parquet file, got c.csv"),
    ],
)
def test_what_is_refused(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_corpus(name))


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_neither_a_directory_nor_nothing_is_a_corpus(suffix: str) -> None:
    with pytest.raises(InputError, match="there is no file"):
        list(read_corpus(f"missing.{suffix}"))
    Path(f"folder.{suffix}").mkdir()
    with pytest.raises(InputError, match=r"corpus: .*folder"):
        list(read_corpus(f"folder.{suffix}"))
