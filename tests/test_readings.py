"""An autoencoder that is misread is told from one that is merely poor, and how it should be read is said."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxcircuits.bundle import Bundle, check_bundle, load_bundle, save_bundle, shipped_bundle
from jaxcircuits.cli import main
from jaxcircuits.convert import convert
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import CorpusFile
from jaxcircuits.model import forward
from jaxcircuits.readings import Checked, check_readings, other_readings, sample_rows
from jaxcircuits.sae import SAE
from jaxcircuits.types import SAEWeights
from tests.helpers import random_tokens, tiny_bundle, tiny_config, tiny_sae

CFG = tiny_config(n_layers=2, n_ctx=16, d_mlp=20, d_vocab=31)
ROWS = np.asarray(random_tokens(CFG, 32, 16))
COUNTED = np.broadcast_to(np.arange(16) > 0, ROWS.shape)


pytestmark = pytest.mark.xdist_group("readings")  # what is compiled once serves all


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(CFG, saes={})


HOOK, POST = "blocks.1.mlp.hook_post", "blocks.0.hook_resid_post"
NORMED, OUT, PRE = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_pre"


@pytest.fixture(scope="module")
def values(bundle: Bundle) -> dict[str, np.ndarray]:
    """By hook point, its value at each position that counts."""
    run = jax.jit(partial(forward, cfg=CFG, taps=(HOOK, POST, NORMED, OUT, PRE), logits_at=None))
    _, acts = run(bundle.params, tokens=jnp.asarray(ROWS))
    return {hook: np.asarray(value, np.float64)[COUNTED] for hook, value in acts.items()}


@pytest.fixture(scope="module")
def trained(values: dict[str, np.ndarray]) -> Callable[..., SAE]:
    """Autoencoders that know their hook point: of its mean and of the directions in which it varies most."""

    def sae(hook: str, kept: int, subtract: bool = True) -> SAE:
        x = values[hook]
        mean = x.mean(0)
        directions = np.linalg.svd(x - mean, full_matrices=False)[2][:kept].T
        W_enc = np.concatenate([directions, -directions], 1)
        b_enc = np.zeros(2 * kept) if subtract else -mean @ W_enc
        arrays = (W_enc, b_enc, W_enc.T, mean)
        weights = SAEWeights(*(jnp.asarray(a, jnp.float32) for a in arrays))
        return SAE(weights, replace(tiny_sae(CFG, hook, 2 * kept).cfg, subtract_b_dec=subtract))

    return sae


def checked(bundle: Bundle, sae: SAE) -> Checked:
    return check_readings(bundle.params, CFG, {"x": sae}, ROWS, COUNTED)["x"]


@pytest.mark.parametrize("right", [True, False])
def test_b_dec_that_is_subtracted_wrongly_is_named(bundle: Bundle, trained: Callable[..., SAE], right: bool) -> None:
    sae = trained(HOOK, 15, right)
    found = checked(bundle, SAE(sae.weights, replace(sae.cfg, subtract_b_dec=not right)))
    assert f"where b_dec is {'' if right else 'not '}subtracted from its input: correct" in str(found.misread)


def test_a_square_one_that_is_transposed_is_named(bundle: Bundle, trained: Callable[..., SAE]) -> None:
    sae = trained(HOOK, 10)
    turned = sae.weights._replace(W_enc=sae.weights.W_enc.T)
    assert "with W_enc transposed: transpose it" in str(checked(bundle, SAE(turned, sae.cfg)).misread)


@pytest.mark.parametrize(("hook", "kept"), [(POST, 1), (HOOK, 3)])
def test_an_honest_poor_one_is_not_refused(bundle: Bundle, trained: Callable[..., SAE], hook: str, kept: int) -> None:
    found = checked(bundle, trained(hook, kept))
    assert found.misread is None
    assert 0 < found.given.variance_explained < 0.95
    assert found.given.l0 == pytest.approx(kept, abs=0.1)  # of a direction and its opposite, one is on
    assert found.tokens == COUNTED.sum()


def test_one_of_random_weights_is_doubted_and_taken(bundle: Bundle) -> None:
    found = checked(bundle, tiny_sae(CFG, POST, 48))
    assert found.misread is None
    assert "less than the mean does, under this reading and every other" in str(found.doubt)


def test_a_transcoder_reads_and_writes_where_it_was_trained(bundle: Bundle, values: dict[str, np.ndarray]) -> None:
    """The second MLP itself, of ReLUs: least squares from its pre-activations to what it writes."""
    pre = values[PRE]
    features = np.concatenate([np.maximum(pre, 0), np.maximum(-pre, 0), np.ones((len(pre), 1))], 1)
    solved = np.linalg.lstsq(features, values[OUT], rcond=None)[0]
    mlp = bundle.params.blocks[1].mlp
    W_enc, b_enc = np.concatenate([mlp.W_in, -mlp.W_in], 1), np.concatenate([mlp.b_in, -mlp.b_in])
    weights = SAEWeights(*(jnp.asarray(a, jnp.float32) for a in (W_enc, b_enc, solved[:-1], solved[-1])))
    cfg = tiny_sae(CFG, NORMED, 40, hook_out=OUT).cfg
    wrong = {"hook_name": "blocks.1.hook_resid_pre"}, {"hook_out": "blocks.1.hook_resid_post"}
    saes = {str(change): SAE(weights, replace(cfg, **change)) for change in ({}, *wrong)}
    right, *misread = check_readings(bundle.params, CFG, saes, ROWS, COUNTED).values()
    assert right.misread is None
    for one in misread:
        assert f"at {NORMED} → {OUT}" in str(one.misread)


# --- on the shipped weights, by every door --------------------------------------------------------


@pytest.fixture(scope="module")
def stories() -> tuple[Bundle, np.ndarray, np.ndarray]:
    bundle = load_bundle()
    sample = sample_rows(bundle.tokenize, CorpusFile(shipped_bundle() / "stories.txt"), bundle.cfg.n_ctx)
    assert sample is not None
    return bundle, *sample


MISREAD = {
    "another layer": ({"hook_name": "blocks.1.mlp.hook_post"}, "at blocks.0.mlp.hook_post: was it trained there?"),
    "normalised": ({"normalization": "layer_norm"}, "with the normalisation none of its input: correct its config."),
    "a factor that is missing": ({}, "to a mean norm of sqrt(d_in): fold that factor into its weights."),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_misreading_of_a_trained_one_is_named(stories: tuple, case: str) -> None:
    bundle, rows, counted = stories
    wrong, words = MISREAD[case]
    sae = next(sae for sae in bundle.saes.values() if sae.cfg.hook_name == "blocks.0.mlp.hook_post")
    planted = SAE(sae.weights, replace(sae.cfg, **wrong))
    if "factor" in case:
        others = other_readings(bundle.params, bundle.cfg, sae, rows, counted)
        planted = next(other for reading, other in others if "is divided by" in reading.how)
    found = check_readings(bundle.params, bundle.cfg, {"right": sae, "planted": planted}, rows, counted)
    assert found["right"].misread is found["right"].doubt is None
    assert words in str(found["planted"].misread) and found["planted"].doubt is None
    better = found["planted"].better
    assert better is not None
    assert better.variance_explained == pytest.approx(found["right"].given.variance_explained, rel=1e-4)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, its first autoencoder said to be of the last layer's hook point."""
    bundle = load_bundle(processed=False)
    first, *_, last = bundle.saes.values()
    wrong = SAE(first.weights, replace(first.cfg, hook_name=last.cfg.hook_name))
    path = tmp_path_factory.mktemp("misread") / "bundle"
    save_bundle(path, bundle.cfg, bundle.params, {"wrong": wrong}, bundle.tokenizer, source={"source": "a test"})
    return path


def test_the_shipped_ones_are_read_aright_and_another_place_is_refused(
    swapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.count("nothing odd") == len(load_bundle().saes)
    first = next(iter(load_bundle().saes.values()))
    with pytest.raises(
        InputError, match=f"SAE wrong explains .* but .* at {first.cfg.hook_name}: was it trained there"
    ):
        load_bundle(swapped, check=True)
    with pytest.raises(InputError, match=r"SAE wrong explains .*--no-check"):
        convert(str(swapped), [], "made")
    assert not Path("made").exists()
    assert main(["info", "--bundle", str(swapped)]) == 2
    output = capsys.readouterr()
    assert "misread" in output.out and output.err.count("\n") == 1
    assert main(["convert", "--model", str(swapped), "--no-check", "--out", "made"]) == 0
    output = capsys.readouterr()
    assert "Checked on" not in output.out and output.err == ""


def test_loading_warns_of_random_weights() -> None:
    bundle = tiny_bundle(CFG, processed=False)
    words = ["the", "and", "to", "was", "he", "she", "it", "a", "said", "They"]
    tokenizer = Tokenizer(
        models.WordLevel({"<|endoftext|>": 0} | {w: i for i, w in enumerate(words, 1)}, "<|endoftext|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_bundle("random", CFG, bundle.params, bundle.saes, tokenizer, source={"source": "random numbers"})
    with pytest.warns(UserWarning, match="SAE blocks.0.mlp.hook_post explains -.* less than the mean does"):
        assert load_bundle("random", check=True).saes


def test_text_that_the_tokenizer_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(CFG, processed=False)
    save_bundle("tiny", CFG, bundle.params, bundle.saes, bundle.tokenizer, source={"source": "random numbers"})
    assert check_bundle(load_bundle("tiny")) == {}
    assert main(["info", "--bundle", "tiny"]) == 0
    assert "SAEs not checked: the shipped stories are no text for this bundle's tokenizer" in capsys.readouterr().out
    Path("foreign.txt").write_text("Once upon a time there was a dog.\n" * 40)
    with pytest.raises(InputError, match=r"foreign.txt: the bundle's tokenizer knows hardly any of its words"):
        check_bundle(load_bundle("tiny"), "foreign.txt")
    rng = np.random.default_rng(0)
    Path("known.txt").write_text("\n".join(" ".join(f"w{i}" for i in rng.integers(1, 31, 15)) for _ in range(32)))
    assert main(["convert", "--model", "tiny", "--check-text", "known.txt", "--quiet", "--out", "made"]) == 0
    assert capsys.readouterr().err.count("jaxcircuits: warning: SAE blocks.") == len(bundle.saes)
