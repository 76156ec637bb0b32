"""Tables of sums merged row by row, against the plainest way, and their files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcircuits.bulk import merging
from jaxcircuits.bulk.merging import merged
from jaxcircuits.bulk.sum_rows import Layout, SumRows, numbers_of, read_rows, write_rows

PLAIN, WITH_LARGEST = Layout("key", ("one", "two")), Layout("key", ("one", "two"), largest=True)


def table(layout: Layout, rng: np.random.Generator, n: int) -> SumRows:
    """Some rows of small whole numbers, so that sums are exact and values tie."""
    rows = np.empty((n, layout.cells), np.int64)
    rows[:, 0] = np.sort(rng.choice(60, n, replace=False)) - 20
    numbers_of(rows)[:] = rng.integers(-3, 4, (n, layout.cells - 1))
    return rows


def plainly(tables: list[SumRows], layout: Layout) -> dict[int, list[float]]:
    """Each key's numbers."""
    found: dict[int, list[float]] = {}
    n = len(layout.sums)
    for rows in tables:
        for key, numbers in zip(rows[:, 0].tolist(), numbers_of(rows).tolist(), strict=True):
            if key not in found:
                found[key] = numbers
                continue
            before = found[key]
            largest = max(before, numbers, key=lambda cells: abs(cells[-1]))[n:]  # the first of equal ones
            found[key] = [a + b for a, b in zip(before[:n], numbers[:n], strict=True)] + largest
    return dict(sorted(found.items()))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.booleans(), st.integers(1, 50), st.integers(0, 99))
@settings(deadline=None)
def test_rows_of_equal_keys_are_added_whatever_is_read_at_once(sizes, largest, at_once, seed) -> None:
    rng = np.random.default_rng(seed)
    layout = WITH_LARGEST if largest else PLAIN
    tables = [table(layout, rng, n) for n in sizes]
    streams = [iter(np.split(rows, sorted(rng.integers(0, len(rows) + 1, 2)))) for rows in tables]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "ROWS", at_once)
        patch.setattr(merging, "BATCH", 1 + at_once // 3)
        rows = np.concatenate([np.empty((0, layout.cells), np.int64), *merged(streams, layout)])
    assert dict(zip(rows[:, 0].tolist(), numbers_of(rows).tolist(), strict=True)) == plainly(tables, layout)
    assert (np.diff(rows[:, 0]) > 0).all()


def test_files_and_what_is_made_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [table(WITH_LARGEST, rng, n) for n in (40, 0, 55)]
    files = [tmp_path / f"{i}.rows" for i in range(3)]
    for file, rows in zip(files, tables, strict=True):
        with file.open("wb") as opened:
            write_rows(opened, rows)
    np.testing.assert_array_equal(np.concatenate(list(read_rows(files[2], WITH_LARGEST.cells, 7))), tables[2])
    mixed = [files[0], iter([tables[1]]), files[2]]
    np.testing.assert_array_equal(
        np.concatenate(list(merged(mixed, WITH_LARGEST))), np.concatenate(list(merged(files, WITH_LARGEST)))
    )


def test_a_file_that_was_cut_is_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    file = tmp_path / "cut.rows"
    file.write_bytes(b"1234567 " * (3 * PLAIN.cells - 1))
    with pytest.raises(OSError, match=r"cut\.rows ends within a row"):
        list(read_rows(file, PLAIN.cells, 2))
    with pytest.raises(OSError, match="within a row"):
        list(merged([file, file], PLAIN))
