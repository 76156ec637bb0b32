"""`attribute` as a user calls it."""

import numpy as np
import pyarrow as pa
import pytest

from jaxcircuits import InputError, attribute
from jaxcircuits.attribution.edges import EDGE_COLUMNS, TARGET_COLUMNS
from tests.helpers import tiny_bundle


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


def test_a_text_several_texts_ids(bundle) -> None:
    one = attribute(bundle, "w3 w4 w5")
    ids = attribute(bundle, [0, 3, 4, 5])
    both = attribute(bundle, ["w3 w4 w5", [0, 3, 4, 5]])
    assert one.edges.equals(ids.edges)
    assert both.edges.num_rows == 2 * one.edges.num_rows
    assert one.prompts.column("text").to_pylist() == ["w3 w4 w5"]
    assert ids.prompts.column("text").to_pylist() == [None]
    assert ids.prompts.column("tokens").to_pylist() == [[0, 3, 4, 5]]


def test_columns_and_types_are_the_contracts(bundle) -> None:
    result = attribute(bundle, "w3 w4 w5", positions="all")
    types = {np.int32: pa.int32(), np.float32: pa.float32()}
    for table, columns in ((result.edges, EDGE_COLUMNS), (result.targets, TARGET_COLUMNS)):
        null = ("cosine_similarity", "virtual_weight")
        assert table.schema == pa.schema([pa.field(n, types[dtype], n in null) for n, dtype in columns.items()])
    earlier = (result.to_pandas()["source_pos"] < result.to_pandas()["target_pos"]).to_numpy()
    assert earlier.any()
    nulls = np.array([v is None for v in result.edges.column("cosine_similarity").to_pylist()])
    np.testing.assert_array_equal(nulls, earlier)


def test_what_was_used_is_recorded(bundle) -> None:
    settings = attribute(bundle, "w3 w4", splice="both").settings
    assert settings["method"] == "structured"
    assert settings["splice"] == "both"
    assert settings["precision"] == "highest"
    assert settings["dtype"] == "float32"
    assert (settings["source"], settings["target"]) == tuple(bundle.saes)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "no prompt"),
        ([[]], {}, "at least one"),
        (np.array([0.5, 1.0]), {}, "whole numbers"),
        ([0, 31], {}, "token ids must lie in 0..30, got 31"),
        ([0, -1], {}, "got -1"),
        ([0] * 17, {}, "17 tokens.*context holds 16"),
        ("w3", {"positons": "all"}, "unknown setting 'positons'; there are source"),
    ],
)
def test_input_that_cannot_be(bundle, prompts, settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(bundle, prompts, **settings)
