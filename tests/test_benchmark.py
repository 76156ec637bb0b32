"""The benchmark runs, has every row, and its contenders agree. Its times are nobody's business here."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformer_lens")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import benchmark
import benchmark_clock
import benchmark_rows as rows

pytestmark = pytest.mark.torch

ROWS = {
    rows.SAME: {rows.LOOP, rows.PLAIN, rows.TUNED, rows.VMAP, rows.STRUCTURED, "structured, and virtual weights"},
    rows.ALL: {rows.PROJECTED, rows.EVERYWHERE},
    rows.WHOLE: {rows.CELL, rows.CARE, "structured: Engine.run", "structured, all positions: Engine.run"},
    "corpus": {
        "forward pass without unembedding",
        "+ both encoders",
        "+ attribution, same position",
        "+ edges listed on the host: Engine.run",
    },
    "ceiling": {"matrix product [256, 64] x [64, 128]", "matrix product [256, 32] x [32, 64]"},
    "growth": {"same: 12 tokens", "same: 24 tokens", "same: 1 prompts of 24 tokens", "same: 2 prompts of 24 tokens"},
    "compilation": {"cold: nothing compiled", "cached on disk"},
    "programs": {"compilations"},
}
CONTENDERS = {rows.LOOP, rows.PLAIN, rows.TUNED, rows.VMAP, rows.STRUCTURED, rows.PROJECTED, rows.EVERYWHERE, rows.CELL}


@pytest.mark.slow
def test_a_quick_run_has_every_row_and_the_contenders_agree() -> None:
    arguments = ["--shape", "tiny", "--quick", "--json", "result.json", "--markdown", "result.md"]
    assert benchmark.main(arguments) == 0
    result = json.loads(Path("result.json").read_text())
    (section,) = result["sections"]
    found = {group: {row["what"] for row in section["rows"] if row["group"] == group} for group in ROWS}
    missing = {group: names - found[group] for group, names in ROWS.items()}
    assert not any(missing.values()), missing
    for row in section["rows"]:
        numbers = [*row["samples"], row["median"], row["min"], *row["more"].values(), row["ratio"] or 1.0]
        assert all(math.isfinite(x) and x > 0 for x in numbers), row
    assert section["agreement"].keys() >= CONTENDERS
    assert max(section["agreement"].values()) <= benchmark.TOLERANCE
    table = Path("result.md").read_text()
    assert all(row["what"] in table for row in section["rows"])
    assert result["run"]["versions"].keys() >= {"jax", "torch"}


@pytest.mark.slow
def test_with_layers_between_every_contender_agrees() -> None:
    assert benchmark.main(["--shape", "gpt2", "--quick", "--json", "result.json"]) == 0
    (section,) = json.loads(Path("result.json").read_text())["sections"]
    found = {row["what"]: row for row in section["rows"]}
    assert found.keys() == {rows.PLAIN, rows.VMAP, "structured, same position", "structured, all positions"}
    for row in found.values():
        assert all(math.isfinite(x) and x > 0 for x in [*row["samples"], *row["more"].values()]), row
    assert len(section["agreement"]) == 6
    assert max(section["agreement"].values()) <= benchmark.TOLERANCE


def test_contenders_that_differ_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "alone_rows", lambda *_: ([], {"one": 0.0, "other": 1e-3}))
    with pytest.raises(SystemExit, match="not the definition's"):
        benchmark.main(["--shape", "tiny", "--quick"])


def test_differences_are_relative_to_the_targets_largest_edge() -> None:
    expected = {(3, 5): np.array([[3, 1, 2.0], [3, 4, -4.0]]), (4, 0): np.zeros((0, 3))}
    other = {**expected, (3, 5): np.array([[3, 4, -4.0], [3, 1, 2.2]])}
    assert benchmark_clock.difference(other, expected) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="finite"):
        benchmark_clock.difference({**expected, (3, 5): expected[3, 5] * np.nan}, expected)
    with pytest.raises(ValueError, match="sources"):
        benchmark_clock.difference({**expected, (3, 5): expected[3, 5][:1]}, expected)
    with pytest.raises(ValueError, match="targets"):
        benchmark_clock.difference({(3, 5): expected[3, 5]}, expected)
