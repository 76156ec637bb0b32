"""Which files of a data set are read, how they come from the hub, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.training.hub_corpus import read_training_texts, training_files
from tests.hub_server import serving, with_hub


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["README.md", "data/train-1.parquet", "data/train-0.parquet", "data/validation-0.parquet", "train.txt"],
         ["data/train-0.parquet", "data/train-1.parquet"]),
        (["valid.jsonl", "train.jsonl", "train.txt"], ["train.jsonl"]),
        (["README.txt", "stories.txt", "test.txt"], ["stories.txt"]),
    ],
)  # fmt: skip
def test_training_files_of_a_data_set(names, expected):
    assert training_files("hub:a/b", names) == expected


def test_sources_that_cannot_be_read_are_refused():
    with pytest.raises(InputError, match=r"hub:a/b has no .parquet"):
        training_files("hub:a/b", ["README.md", "valid.parquet"])
    with pytest.raises(InputError, match="expected hub:owner/name"):
        read_training_texts("hub:justaname")
    with pytest.raises(InputError, match="no file"):
        read_training_texts("missing.txt")


READ = """
import json, sys
from jaxcircuits.errors import InputError
from jaxcircuits.training.hub_corpus import read_training_texts
found = []
for source in json.loads(sys.argv[1]):
    try:
        found.append(read_training_texts(source))
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_data_sets_come_from_the_hub_and_its_cache(tmp_path: Path) -> None:
    """By the way that models take (`tests/convert/test_hub.py`): pinned, checked, and without network."""
    root, home = tmp_path / "hub", tmp_path / "home"
    for name, texts in (("texts", ["One.", "Two."]), ("texts@v1", ["Before.", "Then."]), ("changed", ["A.", "B."])):
        (root / "datasets" / "tiny" / name / "data").mkdir(parents=True)
        for i, text in enumerate(texts):
            file = root / "datasets" / "tiny" / name / "data" / f"train-{i:05d}-of-00002.parquet"
            pq.write_table(pa.table({"text": [text]}), file)
    with serving(root) as hub:
        hub.faults = {"datasets/tiny/changed/data/train-00001-of-00002.parquet": "changed"}
        asked = ["hub:tiny/texts", "hub:tiny/texts@v1", "hub:tiny/nothing", "hub:tiny/texts@v2", "hub:tiny/changed"]
        now, pinned, missing, revision, changed = with_hub(READ, hub.url, home, asked)
    assert now == ["One.", "Two."] and pinned == ["Before.", "Then."]
    assert missing.startswith("corpus: on the hub there is no data set tiny/nothing that you may read")
    assert revision.startswith("corpus: tiny/texts on the hub has no revision v2")
    assert changed.startswith("corpus: train-00001-of-00002.parquet of tiny/changed is not what the hub announced")
    next(home.rglob("datasets--tiny--texts/refs/main")).write_text("0" * 40)  # as if a newer one had been begun
    *same, part, gone = with_hub(READ, hub.url, home, ["hub:tiny/texts@v1", "hub:tiny/changed", "hub:tiny/texts"])
    assert same == [pinned]
    assert "the hub is out of reach (" in part and "holds 1 of the 2 files data/train-*-of-00002.parquet" in part
    assert gone.startswith("corpus: the hub is out of reach (") and gone.endswith("; check the network.")
