"""Which files of a data set are read, and what is refused."""

import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.training.hub_corpus import read_training_texts, training_files


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
