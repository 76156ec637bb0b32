"""`jaxcircuits train lm` and `train sae` from end to end on a tiny text: a bundle, or one sentence."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.cli import main
from jaxcircuits.training.settings import LMTraining, SAETraining, meanings
from tests.training.conftest import LM, SAE


def options(settings) -> list[str]:
    return [f"--{f.name.replace('_', '-')}={getattr(settings, f.name)}" for f in fields(settings)]


@pytest.fixture
def corpus(stories) -> str:
    Path("train.txt").write_text("\n<|endoftext|>\n".join(stories))
    return "train.txt"


def test_a_language_model_and_its_autoencoders(corpus, capsys):
    lm = ["train", "lm", "--corpus", corpus, "--out", "lm", "--quiet", *options(LM)]
    assert main(lm) == 0
    sae = ["train", "sae", "--bundle", "lm/bundle", "--corpus", corpus, "--out", "sae", *options(SAE)]
    assert main([*sae, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    bundle = load_bundle("sae/bundle")
    assert list(bundle.saes) == ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert bundle.saes["blocks.0.mlp.hook_post"].cfg.d_sae == SAE.expansion * bundle.cfg.d_mlp
    assert bundle.tokenizer is not None
    training = bundle.manifest["training"]
    assert training["lm"]["corpus"] == training["sae"]["corpus"] == "train.txt"
    metrics = Path("sae/blocks.1.mlp.hook_post/metrics.jsonl").read_text()
    assert json.loads(metrics.splitlines()[-1])["step"] == SAE.steps

    assert main(sae) == 0  # nothing is left to do
    assert "written to sae/bundle" in capsys.readouterr().out
    assert Path("sae/blocks.1.mlp.hook_post/metrics.jsonl").read_text() == metrics
    assert load_bundle("sae/bundle").manifest["sha256"] == bundle.manifest["sha256"]
    assert main([*sae, "--l0", "9"]) == 2
    assert capsys.readouterr().err.startswith("jaxcircuits: error: sae holds a training run with l0=6.0, not 9.0;")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lm", "--corpus", "missing.txt"], "no file"),
        (["lm", "--corpus", "train.txt"], "the text is too small for a vocabulary of 4096"),
        (["lm", "--corpus", "train.txt", "--n-heads", "5"], "n_heads must divide d_model"),
        (["sae", "--corpus", "train.txt", "--bundle", "nowhere"], "there is no bundle nowhere"),
        (["sae", "--corpus", "train.txt", "--bundle", "nowhere", "--l0", "-1"], "l0 must not be negative"),
    ],
)
def test_bad_input_is_one_sentence(corpus, arguments, message, capsys):
    assert main(["train", *arguments, "--out", "run", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run/bundle").exists()


@pytest.mark.parametrize(("kind", "settings"), [("lm", LMTraining), ("sae", SAETraining)])
def test_help_tells_what_each_setting_means(kind, settings, capsys):
    assert set(meanings(settings)) == {field.name for field in fields(settings)}
    with pytest.raises(SystemExit):
        main(["train", kind, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(settings):
        assert f"(default {field.default})" in shown
