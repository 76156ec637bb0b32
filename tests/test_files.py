"""Output directories: whole or not at all, and nobody else's."""

from pathlib import Path

import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.files import BUNDLE, RUN, STUDY, check_free, new_directory, read_json, read_text


def write(path: str | Path, kind: str, content: str = "{}", overwrite: bool = False) -> None:
    with new_directory(path, overwrite, kind) as new:
        (new / kind).write_text(content)


def interrupted(path: str) -> None:
    with new_directory(path, overwrite=True) as new:
        (new / RUN).write_text("half")
        raise KeyboardInterrupt


def everything() -> dict[str, bytes | None]:
    return {p.as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(Path().rglob("*"))}


@pytest.mark.parametrize("kind", [RUN, STUDY, BUNDLE])
def test_only_its_own_kind_is_replaced(kind: str) -> None:
    write("mine", kind)
    write("mine", kind, "new", overwrite=True)
    assert (Path("mine") / kind).read_text() == "new"
    Path("home").mkdir()
    Path("home/letter.txt").write_text("dear")
    others = [other for other in (RUN, STUDY, BUNDLE) if other != kind]
    for other in others:
        write(other.split(".")[0], other)
    before = everything()
    for place in ("home", ".", *(other.split(".")[0] for other in others)):
        with pytest.raises(InputError, match="holds something else than a"):
            write(place, kind, overwrite=True)
    assert everything() == before


def test_an_empty_directory_is_free() -> None:
    Path("empty").mkdir()
    write("empty", RUN)
    assert Path("empty/run.json").is_file()


def test_an_occupied_place_needs_leave_and_a_file_is_never_replaced() -> None:
    write("mine", RUN)
    with pytest.raises(InputError, match="pass --overwrite"):
        write("mine", RUN)
    Path("file").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file"):
            check_free("file", overwrite)
        with pytest.raises(InputError, match="cannot write to"):
            write("file/below", RUN, overwrite=overwrite)


def test_an_error_leaves_all_as_it_was() -> None:
    write("mine", RUN, "old")
    before = everything()
    for place in ("mine", "new/and/deep"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(place)
    assert everything() == before


def test_through_a_link_the_target_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine", RUN, "old")
    Path("link").symlink_to("mine")
    write("link", RUN, "new", overwrite=True)
    assert Path("link").is_symlink()
    assert Path("mine/run.json").read_text() == "new"
    monkeypatch.chdir("mine")
    write(".", RUN, "newer", overwrite=True)
    monkeypatch.chdir("..")
    assert Path("mine/run.json").read_text() == "newer"
    assert sorted(p.name for p in Path().iterdir()) == ["link", "mine"]


def test_a_byte_order_mark_is_no_text() -> None:
    Path("windows.json").write_bytes(b"\xef\xbb\xbf[1,\r\n2]")
    assert read_text("windows.json", "list") == "[1,\n2]"
    assert read_json("windows.json", "list") == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1,", "is not JSON"),
        (b"[" * 100_000, "beyond what JSON is read for"),
        (b"1" * 5000, "beyond what JSON is read for"),
        (b"\xff", "is not UTF-8 .byte 0xff at offset 0"),
    ],
)
def test_what_is_no_json(content: bytes, message: str) -> None:
    Path("bad.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json("bad.json", "list")
