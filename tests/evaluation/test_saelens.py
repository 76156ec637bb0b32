"""Every figure that SAELens also has, on the shipped autoencoders; needs sae-lens, which brings much along."""

import sys
from pathlib import Path

import pytest

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.bundle import shipped_bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("length", [64])
def test_figures_agree_with_saelens(length):
    pytest.importorskip("sae_lens", reason="sae-lens is not installed; scripts/compare_evaluation.py says how")
    import compare_evaluation

    bundle = load_bundle()
    stories = list(read_corpus(shipped_bundle() / "stories.txt"))[:40]
    rows = compare_evaluation.token_rows(bundle, stories, length, 12)
    records = compare_evaluation.compare(bundle, load_bundle(processed=False), rows)
    assert {r["bos"] for r in records} == {"in", "out"} and {r["sae"] for r in records} == set(bundle.saes)
    assert len(records) == 2 * 2 * (len(compare_evaluation.FIGURES) + len(compare_evaluation.COLUMNS))
    assert [r for r in records if not r["relative"] < 1e-4] == []
