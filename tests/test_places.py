"""Files at paths and URLs: whole or not at all, and one sentence where they cannot be had."""

from pathlib import Path

import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.places import Place, digest_of, opened


@pytest.mark.parametrize("where", ["here/and/there", "file://{}/there", "memory://place"])
def test_what_is_written_is_there(where: str, tmp_path: Path) -> None:
    place = Place(where.format(tmp_path))
    assert not place.exists("a.txt") and place.sizes() == {}
    place.write("deep/a.txt", b"one")
    place.write("deep/a.txt", b"two")
    with place.new_file("b.txt") as file:
        file.write(b"three")
    assert place.read("deep/a.txt") == b"two"
    assert place.sizes() == {"deep/a.txt": 3, "b.txt": 5}
    assert place.sizes("deep") == {"deep/a.txt": 3}
    assert place.sha256("b.txt") == digest_of(f"{where.format(tmp_path)}/b.txt", "file")
    place.fetch("deep", tmp_path / "copy")
    assert (tmp_path / "copy/deep/a.txt").read_bytes() == b"two"
    place.remove("b.txt")
    place.remove("b.txt")
    place.clear()
    assert place.sizes() == {}


def _write_half(place: Place) -> None:
    with place.new_file("a.txt") as file:
        file.write(b"tw")
        raise ValueError("closed")


def test_an_error_leaves_what_was_there() -> None:
    place = Place("here")
    place.write("a.txt", b"one")
    with pytest.raises(ValueError, match="closed"):
        _write_half(place)
    assert place.read("a.txt") == b"one"
    assert [p.name for p in Path("here").iterdir()] == ["a.txt"]


def test_what_cannot_be_had_is_said() -> None:
    Path("file").write_text("")
    with pytest.raises(InputError, match=r"cannot write a.txt to file/below \(Not a directory\)"):
        Place("file/below").write("a.txt", b"")
    with pytest.raises(InputError, match="nosuch://x cannot be opened .*Protocol not known"):
        Place("nosuch://x")
    with pytest.raises(InputError, match="corpus: there is no file nowhere; check"), opened("nowhere", "corpus"):
        pass
