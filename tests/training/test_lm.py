"""Training of a language model: it learns, resumes exactly and refuses another run's directory."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.training.train_state import TrainState

from jaxcircuits.bundle import load_bundle
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.rows import rows_of
from jaxcircuits.training import loop
from jaxcircuits.training.lm import Batches, init_params, optimiser, train_tokenizer, update
from jaxcircuits.training.runs import run_lm, run_sae
from tests.training.conftest import LM, SAE, changed


@pytest.fixture
def corpus(stories) -> str:
    Path("train.txt").write_text("\n<|endoftext|>\n".join(stories))
    return "train.txt"


def test_run_lowers_the_loss_and_writes_a_bundle(corpus):
    run_lm(corpus, LM, "run", quiet=True)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert Path("run/metrics.png").stat().st_size > 0
    bundle = load_bundle("run/bundle", processed=False)
    assert bundle.cfg.d_vocab == LM.d_vocab
    np.testing.assert_array_equal(bundle.params.W_U, bundle.params.W_E.T)
    assert bundle.manifest["training"]["lm"]["seed"] == LM.seed


def test_resumed_run_equals_an_uninterrupted_one(stories):
    tokenizer = train_tokenizer(stories, LM.d_vocab)
    batches = Batches(rows_of(stories, tokenizer, LM.n_ctx), LM)
    step = jax.tree_util.Partial(update, cfg=LM.model())

    def start():
        return TrainState.create(apply_fn=forward, params=init_params(LM), tx=optimiser(LM, len(batches)))

    def run(out: str, n_steps: int):
        Path(out).mkdir(exist_ok=True)
        return loop.train(
            start(), step, batches, n_steps, Path(out), label="", checkpoint_every=3, log_every=2, quiet=True
        )

    whole = run("whole", 8)
    run("parts", 5)
    with open("parts/metrics.jsonl", "a") as log:
        log.write('{"step": 7, "loss": 0.0}\n')  # logged after the checkpoint, then killed
    resumed = run("parts", 8)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [json.loads(line)["step"] for line in Path("parts/metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 5, 6, 8]  # a checkpoint ends a stretch, so that a resumed one has the same


def test_other_settings_at_the_same_place_are_refused_by_name(corpus, stories):
    run_lm(corpus, LM, "run", quiet=True)
    first = load_bundle("run/bundle").manifest["training"]["lm"]["corpus_sha256"]
    with pytest.raises(InputError, match=r"seed=0, not 1"):
        run_lm(corpus, changed(LM, seed=1), "run", quiet=True)
    Path("train.txt").write_text("\n<|endoftext|>\n".join(reversed(stories)))
    with pytest.raises(InputError, match="corpus_sha256"):
        run_lm(corpus, LM, "run", quiet=True)
    run_lm(corpus, LM, "run", overwrite=True, quiet=True)
    assert load_bundle("run/bundle").manifest["training"]["lm"]["corpus_sha256"] != first


def test_a_directory_with_other_things_and_a_damaged_checkpoint_are_refused(corpus):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds no training run, expected one of kind lm"):
            run_lm(corpus, LM, "mine", overwrite=overwrite, quiet=True)
    assert Path("mine/notes.txt").read_text() == "mine"
    run_lm(corpus, LM, "run", quiet=True)
    Path("run/checkpoint.msgpack").write_bytes(b"\x00damaged")
    with pytest.raises(InputError, match="damaged"):
        run_lm(corpus, LM, "run", quiet=True)


def test_a_refused_run_leaves_all_as_it_was(corpus):
    with pytest.raises(InputError, match="too small for a vocabulary"):
        run_lm(corpus, changed(LM, d_vocab=5000), "new/run", quiet=True)
    assert not Path("new").exists()
    run_lm(corpus, LM, "run", quiet=True)
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="too small for a vocabulary"):
        run_lm(corpus, changed(LM, d_vocab=5000), "run", overwrite=True, quiet=True)
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def test_a_run_of_another_kind_is_never_replaced(corpus):
    run_lm(corpus, LM, "run", quiet=True)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds a training run of kind lm, expected one of kind sae"):
            run_sae("run/bundle", None, corpus, SAE, "run", overwrite=overwrite, quiet=True)
    assert load_bundle("run/bundle").saes == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 5}, "n_heads must divide"),
        ({"n_heads": 0}, "n_heads must be positive"),
        ({"d_vocab": 100}, "d_vocab"),
        ({"batch_tokens": 8}, "batch_tokens"),
        ({"epochs": 0.0}, "epochs must be positive"),
        ({"epochs": float("inf")}, "epochs must be positive and finite, got inf"),
        ({"muon_lr": float("nan")}, "muon_lr must be positive and finite, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        changed(LM, **fields)
