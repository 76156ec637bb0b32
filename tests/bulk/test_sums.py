"""Sums of parts are merged in groups as parts come to count, in whatever order they come."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxcircuits.bulk import sums
from jaxcircuits.bulk.edge_statistics import FILE, LAYOUTS
from jaxcircuits.bulk.store import SUMS, Store, file_entry
from jaxcircuits.bulk.sums import Sums
from jaxcircuits.places import Place
from tests.bulk.corpora import Corpus, statistics, write_parts

PARTS = 23


@pytest.mark.parametrize("where", ["run", "memory://sums"])
def test_they_say_the_same_in_few_files(where: str, monkeypatch) -> None:
    for of in ("PARTS", "AT_ONCE"):
        monkeypatch.setattr(sums, of, 4)
    corpus = Corpus(np.random.default_rng(0), stories=PARTS, sources=6, targets=5, length=8, offsets=(0, 1))
    tables = corpus.edges, corpus.activations, corpus.prompts
    whole = statistics(Path("whole"), *tables).to_pandas()
    write_parts(Path("parts"), *tables, cuts=range(1, PARTS))
    place = Place(where)
    store = Store(place, {"parts": [], "sums": [], "files": {}})
    additive = Sums(store)
    for part in np.random.default_rng(1).permutation(PARTS):
        entry = {"part": int(part)}
        for kind in LAYOUTS:
            name = f"{SUMS}/{kind}/part-{part:05d}.arrow"
            place.write(name, (Path("parts") / name).read_bytes())
            entry[f"{SUMS}/{kind}"] = {"file": name, **file_entry(place, name)}
        store.count(entry)
        additive.compact()
    spans = [span["parts"] for span in store.record["sums"]]
    assert spans == [[0, 16], [16, 20], [20, 21], [21, 22], [22, 23]]
    assert json.loads(place.read("run.json"))["sums"] == store.record["sums"]
    named = {span[kind]["file"] for span in store.record["sums"] for kind in LAYOUTS}
    assert set(place.sizes(SUMS)) == named
    store.record["parts"] = []  # which say how many edges were cut
    additive.merge()
    place.fetch(FILE, Path())
    found = pq.read_table(FILE).to_pandas()
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-12, err_msg=name)
