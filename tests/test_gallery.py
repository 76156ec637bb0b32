"""The gallery is made quickly of few stories: its figures are there, and its page says what was computed."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxcircuits import ablate, intervene, load_bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import gallery

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gallery")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("docs")
    assert gallery.main(["--quick", "--out", str(place / "gallery")]) == 0
    numbers = json.loads((place / "gallery" / "gallery.json").read_text())["stories"]
    return place, (place / "gallery.md").read_text(), numbers


def test_figures_are_there(made: tuple[Path, str, list[dict[str, Any]]]) -> None:
    place, page, _ = made
    figures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert {place / name for name in figures} == set((place / "gallery").glob("*.png"))
    assert len(figures) == 4
    assert all((place / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    assert max(map(len, page.splitlines())) < 400  # only rows of tables are long


def test_the_page_says_what_was_computed(made: tuple[Path, str, list[dict[str, Any]]]) -> None:
    _, page, (drawn, corpus, cosine) = made
    first, second, third = (" ".join(part.split()) for part in page.split("\n## ")[1:])
    assert f"**{drawn['feature']}**" in first
    assert f"{drawn['activation']:.3f}" in first
    for end, attribution, left in zip(drawn["drivers"], drawn["attribution"], drawn["left"], strict=False):
        assert re.search(rf"feature {end['feature']} at .*{re.escape(f'| {attribution:+.3f} | {left:.0%} |')}", first)
    for row in corpus["drivers"]:
        assert f"| {row['source_feature']} | {row['offset']} | {row['mean']:+.3f} |" in second
    assert corpus["feature"] == drawn["feature"]
    assert all(f"{value:+.4f}" in third for value in cosine["stages"].values())
    assert cosine["stages"]["cosine_similarity"] * cosine["stages"]["gradient"] < 0
    assert f"({cosine['effect']:+.3f})" in third


def test_ablations_are_those_of_interventions(made: tuple[Path, str, list[dict[str, Any]]]) -> None:
    _, _, (drawn, _, cosine) = made
    bundle = load_bundle()
    source, target = bundle.saes

    def left(ids: list[int], pos: int, feature: int, gone: list[tuple[int, int]]) -> list[float]:
        runs = ([], [ablate(source, f, p) for p, f in gone])
        acts = [
            intervene(bundle.params, bundle.cfg, bundle.saes, jnp.asarray(ids), run, read=[target]).feature_acts[target]
            for run in runs
        ]
        return [float(a[pos, feature]) for a in acts]

    sentence = drawn["sentence"]
    ends = [(e["pos"], e["feature"]) for e in drawn["drivers"]]
    before, after = left(sentence, len(sentence) - 1, drawn["feature"], ends)
    assert before == pytest.approx(drawn["activation"], rel=1e-4)
    assert after / before == pytest.approx(drawn["left"][-1], abs=1e-4)
    pos, pair = cosine["pos"], (cosine["source"], cosine["target"])
    before, after = left(cosine["story"][: pos + 1], pos, pair[1], [(pos, pair[0])])
    assert after - before == pytest.approx(cosine["effect"], abs=1e-4 * before)
