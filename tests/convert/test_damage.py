"""Whatever a config or a tensor holds instead, the answer is an autoencoder or one sentence, never another error."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcircuits.convert.api import SAE_FORMATS
from jaxcircuits.convert.format import ConvertedSAE, Options
from jaxcircuits.errors import InputError
from tests.convert.recorded import MANIFEST, SAMPLES

CONFIGS = {
    "sae_lens_6/topk_rescaled": "cfg.json",
    "sae_lens_6/skip_transcoder": "cfg.json",
    "sae_lens_6_training/batchtopk_checkpoint": "cfg.json",
    "sae_lens_5/topk": "cfg.json",
    "sae_lens_5/standard_finetuned": "cfg.json",
    "sparsify/transcoder_skip": "h.1.mlp/cfg.json",
    "sparsify/groupmax": "h.0/cfg.json",
    "dictionary_learning/matryoshka": "trainer_0/config.json",
    "dictionary_learning/topk": "trainer_0/config.json",
}
VALUES: list[Any] = [None, True, False, 0, -1, 3, 1.5, float("nan"), "", "x", [], [1], {}, {"a": 1}]
ARRAYS = [
    np.zeros((), np.float32),
    np.zeros(0, np.float32),
    np.zeros((2, 0), np.float32),
    np.ones((16, 2, 2), np.float32),
]
ARRAYS += [np.ones((64, 64), np.float32), np.ones(64, np.int64), np.ones(16, bool), np.full(64, np.nan, np.float32)]
TENSORS = {
    **{name: "sae_weights.safetensors" for name in ("sae_lens_6/gated", "sae_lens_6/topk_rescaled")},
    **{name: "sae_weights.safetensors" for name in ("sae_lens_6/skip_transcoder", "sae_lens_5/standard_finetuned")},
    "sae_lens_6_training/batchtopk_rescaled_checkpoint": "sae_weights.safetensors",
    "sparsify/transcoder_old": "h.1.mlp/sae.safetensors",
    "circuit_tracer/jumprelu": "layer_1.safetensors",
}


def read(path: Path, sample: str) -> ConvertedSAE | None:
    """What the sample's format makes of it; `None` where it refuses in one sentence."""
    source = path / MANIFEST[sample]["source"]
    try:
        return next(each for each in SAE_FORMATS if each.matches(source)).read(source, Options())
    except InputError as error:
        sentence = str(error)
    assert sentence.endswith(".") and "\n" not in sentence, sentence
    return None


def paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where the fields of a config are."""
    if not isinstance(value, dict):
        return [above]
    return [above] * bool(above) + [path for name, inner in value.items() for path in paths(inner, (*above, name))]


@pytest.mark.parametrize("sample", CONFIGS)
def test_configs(sample: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / sample, tmp_path / "sample")
    file = tmp_path / "sample" / CONFIGS[sample]
    original = file.read_text()
    assert read(tmp_path / "sample", sample) is not None
    refused = 0
    for place in paths(json.loads(original)):
        for value in VALUES:
            fields = json.loads(original)
            inner = fields
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = value
            file.write_text(json.dumps(fields))
            refused += read(tmp_path / "sample", sample) is None
    assert refused > 20


@pytest.mark.parametrize("sample", TENSORS)
def test_tensors(sample: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / sample, tmp_path / "sample")
    file = tmp_path / "sample" / TENSORS[sample]
    original = load_file(file)
    for name in original:
        for array in ARRAYS:
            save_file(original | {name: array}, file)
            read(tmp_path / "sample", sample)
        save_file({key: tensor for key, tensor in original.items() if key != name}, file)
        found = read(tmp_path / "sample", sample)
        # A transcoder of circuit-tracer without thresholds is one of ReLUs: nothing else says which it is.
        assert found is None or name == "activation_function.threshold", name
    content = (SAMPLES / sample / TENSORS[sample]).read_bytes()
    for cut in (0, 4, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        assert read(tmp_path / "sample", sample) is None
