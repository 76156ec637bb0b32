"""Many SAEs at once: which pairs there are, and that each gives what it gives alone."""

from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import attribute_pairs, load_run, save_bundle
from jaxcircuits.attribution import attribute
from jaxcircuits.attribution.pairs import pairs_of
from jaxcircuits.bundle import Bundle
from jaxcircuits.cli import main
from jaxcircuits.errors import InputError
from tests.helpers import random_params, tiny_bundle, tiny_config, tiny_sae

HOOKS = {"first": "blocks.0.hook_mlp_out", "second": "blocks.1.hook_mlp_out", "third": "blocks.2.hook_mlp_out"}
SETTINGS = {"positions": "all", "through": "direct", "top_k": 5}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    cfg = tiny_config(n_layers=3)
    hooks = HOOKS | {"beside": HOOKS["second"]}
    return tiny_bundle(cfg, saes={name: tiny_sae(cfg, hook, 24, seed=len(name)) for name, hook in hooks.items()})


def test_pairs_are_those_of_which_one_comes_first(bundle: Bundle) -> None:
    every = pairs_of(bundle, "all")
    assert len(every) == 5  # of six, second and beside sit on one hook
    assert pairs_of(bundle, "adjacent") == [pair for pair in every if pair != ("first", "third")]
    assert pairs_of(bundle, [("first", "third"), ("first", "third")]) == [("first", "third")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("some", "adjacent or all"),
        ([("first", "forth")], "no SAE 'forth'"),
        ([("third", "first")], "swap"),
        ([("second", "beside")], "swap"),
        ([], "no two SAEs"),
    ],
)
def test_pairs_that_are_none(bundle: Bundle, pairs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pairs_of(bundle, pairs)


def test_each_pair_gives_what_it_gives_alone_and_a_run(bundle: Bundle, tmp_path: Path) -> None:
    """What lies between is held: the pair at the ends has direct edges, other than its total ones."""
    ids = [0, 5, 9, 3, 7, 2]
    chosen = [("first", "second"), ("first", "third")]
    results = attribute_pairs(bundle, ids, chosen, **SETTINGS)
    assert list(results) == chosen
    assert results["first", "third"].settings["held"] == [HOOKS["second"]]
    alone = attribute(bundle, ids, source="first", target="third", **SETTINGS)
    assert results["first", "third"].edges.equals(alone.edges)
    total = attribute(bundle, ids, source="first", target="third", **SETTINGS | {"through": "total"})
    assert np.abs(alone.to_pandas().gradient).sum() != np.abs(total.to_pandas().gradient).sum()

    save_bundle(tmp_path / "bundle", bundle.cfg, random_params(bundle.cfg), bundle.saes, bundle.tokenizer, source={})
    (tmp_path / "ids.json").write_text(str(ids))
    options = ["--positions", "all", "--through", "direct", "--top-k", "5", "--quiet"]
    where = ["--bundle", str(tmp_path / "bundle"), "--prompt-ids", str(tmp_path / "ids.json")]
    assert main(["attribute", *where, "--pairs", "first,second", "first,third", "--out", "run", *options]) == 0
    assert sorted(path.name for path in Path("run").iterdir()) == ["first--second", "first--third"]
    run = load_run("run/first--third")
    assert (run.record["settings"]["source"], run.record["settings"]["target"]) == ("first", "third")
    assert run.rows("edges") == alone.edges.num_rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "all", "--source-sae", "first"], "--source-sae is of one pair"),
        (["--pairs", "first"], "SOURCE,TARGET"),
    ],
)
def test_options_that_do_not_go_with_pairs(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["attribute", *arguments, "--out", "run"]) == 2
    assert message in capsys.readouterr().err


def test_sources_of_one_call_have_no_ends_of_their_own(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="target is of one pair"):
        attribute_pairs(bundle, [0, 1], "all", target="third")
