"""`validate edges`: what it measures is an intervention written out by hand, what it predicts is what it says."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from jaxcircuits import InputError, ablate, attribute, decode, encode, intervene, load_bundle, pre_activations
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.cli import main
from jaxcircuits.model import forward
from jaxcircuits.statistics import Estimate
from jaxcircuits.validation import edges as edges_module
from jaxcircuits.validation import exactness
from jaxcircuits.validation.agreement import Stories, within_targets
from jaxcircuits.validation.collapse import CHOICES
from jaxcircuits.validation.drivers import ablate_drivers
from jaxcircuits.validation.edges import SOURCES, EdgeValidation, tokenized_stories, validate_edges
from jaxcircuits.validation.effects import measure
from jaxcircuits.validation.pairs import ablate_pairs, largest_cosines
from jaxcircuits.validation.predictors import KEY, PREDICTORS
from jaxcircuits.validation.sampling import OFFSETS, choose_sources, offset_class
from tests.helpers import assert_close, saved_bundle, tiny_config

SOURCE, TARGET = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"
TEXTS = [" ".join(f"w{i}" for i in np.random.default_rng(seed).integers(1, 31, 11)) for seed in range(6)]
"""All of one length: each length is a few more programs to compile."""


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("effects")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    saved_bundle(path, tiny_config())
    return str(path)


@pytest.fixture(scope="module")
def bundle(path: str):
    return load_bundle(path)


@pytest.fixture(scope="module")
def found(bundle) -> EdgeValidation:
    return validate_edges(bundle, tokenized_stories(bundle, TEXTS, 6), edges=380)


def rows_of(found: EdgeValidation, *rows: int):
    """Story, target position and feature, source position and feature of some edges."""
    names = ("story", *KEY)
    return [tuple(int(found.edges[name][row]) for name in names) for row in rows]


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value"), [("scale", 0.0), ("scale", 0.4), ("steer", -0.7)])
def test_effects_are_those_of_the_change_written_out(kind, value, bundle, found) -> None:
    tokens = found.activity.stories[0]
    ends = rows_of(found, *np.flatnonzero(found.edges["story"] == 0)[:4])  # the strongest sources of one target
    targets = np.array([ends[0][1:3], found.activity.active_targets(0)[-1]])
    sources = np.array([end[3:] for end in ends]).reshape(2, 2, 2)
    got = measure(bundle, found.pair, tokens, sources, targets, value, kind=kind)
    source, target = bundle.saes.values()

    def read(changes):
        def edit(x):
            acts = encode(source, x)
            new = acts
            for pos, feature in changes:
                to = value * acts[pos, feature] if kind == "scale" else acts[pos, feature] + value
                new = new.at[pos, feature].set(to)
            return x + decode(source, new) - decode(source, acts)

        _, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=[TARGET], edits={SOURCE: edit})
        pos, feature = targets.T
        return np.stack([read(target, acts[TARGET])[pos, feature] for read in (pre_activations, encode)])

    before = read([])
    assert_close(got.before, before[1], "methods")
    for number, changes in enumerate(sources.tolist()):
        expected = read(changes) - before
        scale = np.abs(before).max()
        assert np.abs(got.pre_act[number] - expected[0]).max() <= 1e-5 * scale
        assert np.abs(got.act[number] - expected[1]).max() <= 1e-5 * scale
        assert np.abs(expected).max() > 1e-4


def test_every_edge_of_the_table_is_its_intervention(bundle, found) -> None:
    some = range(0, len(found.edges["story"]), 83)
    for row, (story, pos, feature, source_pos, source) in zip(some, rows_of(found, *some), strict=True):
        tokens = jnp.asarray(found.activity.stories[story])
        runs = [
            intervene(bundle.params, bundle.cfg, bundle.saes, tokens, changes, read=[TARGET]).feature_acts[TARGET]
            for changes in ([], [ablate(SOURCE, source, source_pos)])
        ]
        before, after = (float(acts[pos, feature]) for acts in runs)
        assert found.edges["effect"][row] == pytest.approx(after - before, abs=1e-5)
        assert found.edges["target_act"][row] == pytest.approx(before, rel=1e-5)
        assert before > 0 and source_pos <= pos
    per_target = np.bincount(found.edges["target"])
    assert len(per_target) == 12 and per_target.max() == SOURCES


# --- what is predicted ----------------------------------------------------------------------------


def test_predictions_are_what_they_are_called(bundle, found) -> None:
    edges = found.edges
    for row in range(0, len(edges["story"]), 61):
        (story, *key), act = rows_of(found, row)[0], float(edges["source_act"][row])
        for derivative in ("exact", "frozen", "integrated"):
            listed = found.predictors.engines[derivative].run([(0, found.activity.stories[story])], [tuple(key[:2])])[0]
            (at,) = np.flatnonzero((np.stack([listed[name] for name in KEY], 1) == key).all(1))
            assert edges[f"predicted_{derivative}"][row] == pytest.approx(-float(listed["attribution"][at]), rel=1e-6)
            if derivative == "exact" and key[0] == key[2]:
                for name, column in (("cosine", "cosine_similarity"), ("virtual_weight", "virtual_weight")):
                    expected = -float(listed[column][at]) * act
                    assert edges[f"predicted_{name}"][row] == pytest.approx(expected, rel=1e-4)
    moved = np.abs(edges["predicted_exact"] - edges["predicted_integrated"])
    assert moved.max() > 1e-3 and np.abs(edges["predicted_exact"] - edges["predicted_frozen"]).max() > 1e-3


def test_co_activation_is_the_correlation_at_the_edge_s_offset(found) -> None:
    activity = found.activity
    n, stride = len(activity.stories), activity.stride
    source, target = (m.toarray().reshape(n, stride, -1) for m in (activity.source, activity.target))
    length = len(activity.stories[0])
    a, b = source[:, 1:length].astype(np.float64), target[:, 1:length].astype(np.float64)
    for row in (0, 40, 200, 300):
        _, pos, feature, source_pos, which = rows_of(found, row)[0]
        offset = pos - source_pos
        x, y = a[:, :, which], b[:, :, feature]
        together = (x[:, : x.shape[1] - offset] * y[:, offset:]).sum() / x.size
        expected = (together - x.mean() * y.mean()) / (x.std() * y.std())
        assert activity.correlation(which, feature, offset) == pytest.approx(expected, rel=1e-6)
        act = float(found.edges["source_act"][row])
        assert found.edges["predicted_co_activation"][row] == pytest.approx(-expected * act, rel=1e-5)


def test_sources_are_chosen_by_size_by_cosine_and_by_chance() -> None:
    rng = np.random.default_rng(0)
    exact, cosine, offsets = rng.standard_normal(200), rng.standard_normal(200), rng.integers(0, 9, 200)
    offsets[offsets > 3] = 9
    chosen, strata = choose_sources(exact, cosine, offsets, 32, rng)
    assert len(set(chosen.tolist())) == 32 and np.bincount(strata).tolist() == [8, 8, 16]
    assert set(chosen[strata == 0].tolist()) == set(np.argsort(-np.abs(exact))[:8].tolist())
    others = np.setdiff1d(np.arange(200), chosen[strata == 0])
    assert set(chosen[strata == 1].tolist()) == set(others[np.argsort(-np.abs(cosine[others]))[:8]].tolist())
    assert np.bincount(offset_class(offsets[chosen[strata == 2]])).tolist() == [4, 4, 4, 4]
    few, why = choose_sources(exact[:5], cosine[:5], offsets[:5], 32, rng)
    assert sorted(few.tolist()) == [0, 1, 2, 3, 4] and len(why) == 5


# --- statistics -----------------------------------------------------------------------------------


def test_ranks_are_spearman_s_within_each_target() -> None:
    rng = np.random.default_rng(1)
    targets = np.repeat([0, 1, 2, 3], [12, 9, 4, 7])
    effect = rng.standard_normal(len(targets)).round(1)
    predicted = effect + rng.standard_normal(len(targets))
    effect[targets == 3] = 0.5
    found = within_targets(predicted, effect, targets)
    for number in (0, 1):
        expected = spearmanr(predicted[targets == number], effect[targets == number]).statistic
        assert found[number] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[2:]).all()  # few sources; nothing that differs
    assert within_targets(np.zeros(12), np.arange(12.0), np.zeros(12, int)).tolist() == [0.0]


def test_intervals_are_over_stories() -> None:
    """Rows of one story are drawn together, so copies of them add no certainty."""
    values = np.random.default_rng(2).standard_normal(30)
    once = Stories(np.arange(30), 0).mean(values)
    copied = Stories(np.repeat(np.arange(30), 50), 0).mean(np.repeat(values, 50))
    assert copied.value == pytest.approx(once.value)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert once.high - once.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.1)
    alone = Stories(np.zeros(5, int), 0).mean(np.arange(5.0))
    assert alone.value == 2 and np.isnan(alone.low)


def test_the_verdict_follows_the_interval(found) -> None:
    assert edges_module._won("all edges", Estimate(0.2, 0.1, 0.3)).ok
    for lost in (Estimate(0.2, -0.01, 0.3), Estimate(-0.2, -0.3, -0.1), Estimate(0.2, np.nan, np.nan)):
        check = edges_module._won("all edges", lost)
        assert not check.ok and "do NOT" in check.note
    assert [check.ok for check in found.report.checks[:2]] == [True, True]
    scores = found.scores["all edges"]
    assert scores["exact"].spearman.value > 0.5 > abs(scores["random"].spearman.value)
    assert set(scores) == set(PREDICTORS) and set(found.scores) <= {"all edges", "random edges", *OFFSETS}
    assert found.left["exact"].value < 0.8 < found.left["random"].value
    assert found.linearity[0]["median"] < 0.05 < found.linearity[-1]["median"]


def test_edges_that_are_wrong_are_found_out(bundle, found, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of a model whose attention is scaled otherwise; ablations in which GELUs are free."""

    def other(bundle, settings):
        return Engine(dataclasses.replace(bundle, cfg=dataclasses.replace(bundle.cfg, attention_scale=0.9)), settings)

    check = exactness.exactness
    with monkeypatch.context() as patch:
        patch.setattr(exactness, "Engine", other)
        wrong = check(bundle, found.activity, Settings(positions="all"), stories=1)
    assert not wrong[0].ok and wrong[0].error > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(exactness, "FREEZABLE", ("attention", "norms"))
        free = check(bundle, found.activity, Settings(positions="all"), stories=1)
    assert free[0].ok and not free[1].ok and free[1].error > 1e-3


# --- drivers and pairs ----------------------------------------------------------------------------


def test_drivers_are_ablated_together(bundle, found) -> None:
    where = (bundle, found.pair, found.activity, found.predictors)
    chosen = ablate_drivers(*where, feature=int(np.diff(found.activity.target.indptr).argmax()), examples=3)
    assert len(chosen.examples) == 3 and set(chosen.left) == set(CHOICES)
    example = chosen.examples[0]
    tokens = jnp.asarray(found.activity.stories[example.story])
    for name, sources in example.drivers.items():
        changes = [ablate(SOURCE, int(feature), int(pos)) for pos, feature in sources]
        run = intervene(bundle.params, bundle.cfg, bundle.saes, tokens, changes, read=[TARGET])
        left = float(run.feature_acts[TARGET][example.pos, chosen.feature]) / example.activation
        assert example.left[name] == pytest.approx(left, abs=1e-5)
    values = [e.left["exact"] for e in chosen.examples]
    assert chosen.left["exact"].value == pytest.approx(np.mean(values))
    edges = attribute(
        bundle, np.asarray(tokens), targets=[(example.pos, chosen.feature)], positions="all", top_k=None
    ).to_pandas()
    best = edges.nlargest(3, "attribution")[["source_pos", "source_feature"]].to_numpy()
    np.testing.assert_array_equal(example.drivers["exact"], best)
    assert all(pos == example.pos for pos in example.drivers["cosine_here"][:, 0])


def test_without_a_feature_the_rule_finds_one(bundle, found) -> None:
    """Words of the tiny vocabulary are numbers, so a bundle without a tokenizer stands for one that has words."""
    where = (dataclasses.replace(bundle, tokenizer=None), found.pair, found.activity, found.predictors)
    chosen = ablate_drivers(*where, examples=3)
    assert len(chosen.examples) >= 2 and chosen.rule != "given"
    ranks = {
        f: (left["exact"] > 1 / 3, left["exact"] - min(v for name, v in left.items() if name != "exact"))
        for f, left in chosen.candidates.items()
    }
    assert len(ranks) > 1 and ranks[chosen.feature] == min(ranks.values())
    # What it was picked on is not shown; what it was picked by is the mean over these stories but the one tried first.
    stories = found.activity.strongest(chosen.feature)[0]
    tried = sorted(set(stories.tolist()) - {example.story for example in chosen.examples})
    assert tried and chosen.feature in chosen.candidates
    every = ablate_drivers(*where, feature=chosen.feature, examples=6).examples
    judged = np.array([example.left["exact"] for example in every if example.story in tried])
    without_one = [float(np.delete(judged, i).mean()) for i in range(len(judged))]
    assert min(abs(chosen.candidates[chosen.feature]["exact"] - mean) for mean in without_one) < 1e-5
    never = int(np.flatnonzero(np.diff(found.activity.target.indptr) == 0)[0])
    with pytest.raises(InputError, match="is active in 0 of the stories"):
        ablate_drivers(*where, feature=never)


@pytest.mark.slow
def test_sources_at_the_target_s_position_alone(bundle) -> None:
    found = validate_edges(bundle, tokenized_stories(bundle, TEXTS, 6), positions="same", edges=100)
    assert not found.edges["offset"].any() and len(found.edges["offset"]) > 50
    assert set(found.scores) == {"all edges", "random edges"}
    assert [check.ok for check in found.report.checks[:2]] == [True, True]


def test_pairs_are_those_of_largest_cosine_and_their_losses(bundle, found) -> None:
    cosines = found.predictors.cosines(slice(None))
    best = largest_cosines(found.predictors, 5)
    np.testing.assert_allclose(best["cosine_similarity"], np.sort(cosines.reshape(-1))[::-1][:5], rtol=1e-6)
    pairs = ablate_pairs(bundle, found.pair, found.activity, found.predictors, 5, examples=4)
    row = int(pairs["examples"].argmax())
    source, target = (int(pairs[f"{end}_feature"][row]) for end in ("source", "target"))
    stories, positions, acts = found.activity.strongest(target)
    known = positions + 1 < 12
    stories, positions, acts = stories[known][:4], positions[known][:4], acts[known][:4]
    assert pairs["examples"][row] == len(stories) > 1
    assert pairs["target_act"][row] == pytest.approx(acts.mean(), rel=1e-5)

    def loss(story, pos, changes):
        tokens = jnp.asarray(found.activity.stories[story])
        run = intervene(bundle.params, bundle.cfg, bundle.saes, tokens, changes, read=[TARGET])
        return -float(jax.nn.log_softmax(run.logits[pos])[tokens[pos + 1]]), float(
            run.feature_acts[TARGET][pos, target]
        )

    at = list(zip(stories.tolist(), positions.tolist(), strict=True))
    for name, changes in (("loss", lambda p: []), ("loss_source_ablated", lambda p: [ablate(SOURCE, source, p)])):
        assert pairs[name][row] == pytest.approx(np.mean([loss(s, p, changes(p))[0] for s, p in at]), rel=1e-5)
    ablated = np.mean([loss(s, p, [ablate(SOURCE, source, p)])[1] for s, p in at])
    assert pairs["target_act_source_ablated"][row] == pytest.approx(ablated, rel=1e-5, abs=1e-6)
    ablated = np.mean([loss(s, p, [ablate(TARGET, target, p)])[0] for s, p in at])
    assert pairs["loss_target_ablated"][row] == pytest.approx(ablated, rel=1e-5)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_its_report_and_its_verdict(path: str, found, capsys, monkeypatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(Path.cwd() / ".cache"))
    Path("stories.txt").write_text("\n".join(TEXTS))
    options = ["validate", "edges", "--bundle", path, "--corpus", "stories.txt", "--edges", "380", "--feature", "3"]
    options += ["--examples", "4", "--pairs", "5"]
    code = main([*options, "--out", "run", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == (0 if printed["ok"] else 1)
    assert printed == json.loads(Path("run/report.json").read_text())
    assert printed["conditions"]["stories"] == 6 and printed["drivers"]["feature"] == 3 and len(printed["pairs"]) == 5
    table = pq.read_table("run/edges.parquet")
    np.testing.assert_array_equal(table["effect"].to_numpy(), found.edges["effect"])
    names = {file.name for file in Path("run/figures").iterdir()}
    assert names == {"edges.png", "linearity.png", "drivers.png", "picture.png", "picture.svg"}

    monkeypatch.setattr(exactness, "FROZEN", 0.0)
    assert main([*options, "--out", "run", "--overwrite"]) == 1
    text = capsys.readouterr().out
    assert "FAILED" in text and "NOT every check held" in text and "frozen edges against whole ablations" in text
    assert main([*options, "--out", "run"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stories", "1"], "at least 2 are needed, got 1"),
        (["--edges", "0"], "number of edges must be at least 1"),
        (["--feature", "26"], "features 0..25, got 26"),
        (["--examples", "1"], "intervals are over examples"),
        (["--source-sae", TARGET], "source SAE must sit before"),
        (["--corpus", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message, path: str, capsys) -> None:
    Path("stories.txt").write_text("\n".join(TEXTS))
    corpus = [] if "--corpus" in options else ["--corpus", "stories.txt"]
    assert main(["validate", "edges", "--bundle", path, *corpus, *options, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()
