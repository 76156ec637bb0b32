"""The weights that ship: what the card says of them is what was measured, and they do what it says."""

import json
import re

import numpy as np
import pytest

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.bundle import Bundle, shipped_bundle
from jaxcircuits.evaluation import evaluate


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle()


def test_everything_is_there_small_and_free_of_machine_paths(shipped):
    path = shipped_bundle()
    files = [p for p in path.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 30e6
    for file in (p for p in files if p.suffix in (".json", ".md")):
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|mnt|Users)/", file.read_text()), file
    manifest = shipped.manifest
    assert manifest["data"]["license"] == "CDLA-Sharing-1.0"
    assert manifest["command"].startswith("jaxcircuits train sae")
    assert manifest["training"]["lm"]["seed"] == manifest["training"]["sae"]["seed"] == 0
    assert len(shipped.saes) == shipped.cfg.n_layers == 2


def test_stories_fit_the_context_and_are_the_model_s_own_prose(shipped):
    stories = list(read_corpus(shipped_bundle() / "stories.txt"))
    assert len(stories) == len(set(stories)) == 200
    lengths = [len(shipped.tokenize(story)) for story in stories]
    assert max(lengths) <= shipped.cfg.n_ctx
    assert np.mean(lengths) > 100


def test_the_card_s_tables_are_the_evaluation(shipped):
    report = json.loads((shipped_bundle() / "evaluation.json").read_text())
    card = (shipped_bundle() / "README.md").read_text()
    expected = [f"{report['ce_clean']:.3f}", f"{report['ce_all_spliced']:.3f}"]
    scores = [report["lm"], report["lm_first_texts"], *report["ngram_kneser_ney"]]
    expected += [f"| {s['nats_per_token']:.3f} | {s['bits_per_character']:.3f} |" for s in scores]
    assert set(report["saes"]) == set(shipped.saes)
    for name, sae in report["saes"].items():
        expected += [f"`{name}`", f"{sae['l0']:.1f}", f"{100 * sae['dead'] / sae['features']:.1f} %"]
        nats = ("ce_spliced", "ce_zero_ablated", "ce_mean_ablated", "recovery_zero", "recovery_mean")
        expected += [f"{sae[key]:.3f}" for key in (*nats, "variance_explained")]
    assert [e for e in expected if e not in card] == []


def test_autoencoders_keep_the_model_s_predictions_on_its_stories(shipped):
    stories = list(read_corpus(shipped_bundle() / "stories.txt"))[:12]
    report = evaluate(shipped, stories).report
    for sae in report["saes"].values():
        assert 15 < sae["l0"] < 40
        assert sae["recovery_mean"] > 0.85
        assert sae["variance_explained"] > 0.6
