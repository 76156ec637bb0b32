"""Corpora as people save them, and as they break them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxcircuits import corpus
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


BROKEN = {
    "c.jsonl": b'{"text": "one"}\n{oops\n{"text": "w\xff"}\n{"words": 1}\n{"text": "LONG"}\n{"text": "two"}\n',
    "c.txt": b"one\nw\xff\nLONG\ntwo",
    "separated.txt": b"one<|endoftext|>\xff<|endoftext|>LONG<|endoftext|>two",
}


@pytest.mark.parametrize("block", [1, 7, 2**20])
@pytest.mark.parametrize("name", list(BROKEN))
def test_bad_records_are_left_out_where_that_is_wanted(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the file is cut into what is read at a time."""
    content = BROKEN[name].replace(b"LONG", b"long " * 40)
    monkeypatch.setattr(corpus, "BLOCK", block)
    monkeypatch.setattr(corpus, "LONGEST", 100)
    Path(name).write_bytes(content)
    skipped: list[str] = []
    assert list(read_corpus(name, skipped.append)) == ["one", "two"]
    words = ["not JSON", "not UTF-8", "no field 'text'"] if name == "c.jsonl" else ["not UTF-8"]
    for sentence, expected in zip(skipped, [*words, "longer than"], strict=True):
        assert expected in sentence
        assert name in sentence
    assert f"byte 0xff at offset {content.index(0xFF)}" in next(s for s in skipped if "UTF-8" in s)
    with pytest.raises(InputError, match="corpus: (line|text) 2 of"):
        list(read_corpus(name))


def test_a_corpus_at_a_url() -> None:
    import fsspec

    with fsspec.open("memory://texts/c.jsonl", "wb") as file:
        file.write(b'{"text": "one"}')
    assert list(read_corpus("memory://texts/c.jsonl")) == ["one"]
    with pytest.raises(InputError, match="there is no file memory://texts/d.txt"):
        list(read_corpus("memory://texts/d.txt"))
