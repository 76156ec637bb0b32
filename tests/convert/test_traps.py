"""The traps of each format, one a row: a sample is changed as someone's file might be, and is read right or refused.

The outcome of a row is `SAME` (features and output are still those of the package), `OTHER` (it is read, and what was
changed shows: so the sample tells the two readings apart), or the sentence that refuses it.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert import SAESource, convert
from jaxcircuits.errors import InputError
from jaxcircuits.sae import decode, encode
from tests.convert.changes import (
    Change,
    Trap,
    fields,
    gone,
    nested,
    not_finite,
    object_array,
    ones,
    renamed,
    sparsity,
    tensors,
    transposed,
)
from tests.convert.recorded import MANIFEST, SAMPLES
from tests.helpers import TOLERANCES

SAME, OTHER = "same", "other"
RESID = "blocks.0.hook_resid_post"
S6, S5, DL = "sae_lens_6", "sae_lens_5", "dictionary_learning"
GEMMA = "gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_71"
ROWS: dict[str, tuple[str, Change, str]] = {
    # SAELens 6.
    "hook nowhere": (
        f"{S6}/standard_none",
        nested("metadata", "hook_name"),
        "does not say which hook point it reads; pass --hook",
    ),
    "nested metadata without a version": (f"{S6}/standard_none", nested("metadata", "sae_lens_version"), SAME),
    "two hooks": (f"{S6}/standard_none", fields(hook_name="blocks.1.hook_mlp_out"), "but in metadata"),
    "scale folded in training, no. 1": (
        f"{S6}/standard_none",
        fields(normalize_activations="expected_average_only_in"),
        SAME,
    ),
    "scale folded in training, no. 2": (
        f"{S6}/standard_none",
        fields(normalize_activations="covariance_whitening"),
        SAME,
    ),
    "normalisation left out": (f"{S6}/standard_layer_norm", fields(normalize_activations="none"), OTHER),
    "another normalisation": (
        f"{S6}/standard_layer_norm",
        fields(normalize_activations="constant_norm_rescale"),
        OTHER,
    ),
    "an unknown normalisation": (
        f"{S6}/standard_none",
        fields(normalize_activations="rms"),
        "must be one of none, .*, got 'rms'",
    ),
    "a normalisation that is a number": (
        f"{S6}/standard_none",
        fields(normalize_activations=1),
        "normalize_activations must be",
    ),
    "centring left out": (f"{S6}/standard_none", fields(apply_b_dec_to_input=False), OTHER),
    "centring by default": (f"{S6}/standard_none", fields("apply_b_dec_to_input"), SAME),
    "decoder norms left out": (f"{S6}/topk_rescaled", fields(rescale_acts_by_decoder_norm=False), OTHER),
    "decoder norms of a standard": (
        f"{S6}/standard_none",
        fields(rescale_acts_by_decoder_norm=True),
        "belongs to a topk",
    ),
    "k missing": (f"{S6}/topk", fields("k"), "the field 'k' is missing"),
    "k another": (f"{S6}/topk", fields(k=4), OTHER),
    "k of a standard": (f"{S6}/standard_none", fields(k=8), "k is 8, but the architecture is standard"),
    "k beyond the features": (f"{S6}/topk", fields(k=65), "k must not exceed the 64 features"),
    "threshold missing": (f"{S6}/jumprelu", gone("threshold"), "the tensor threshold is missing"),
    "threshold too many": (f"{S6}/jumprelu", fields(architecture="standard"), "unknown tensor threshold"),
    "gate missing": (f"{S6}/gated", gone("r_mag"), "the tensor r_mag is missing"),
    "gate and bias": (f"{S6}/gated", tensors(lambda t: t.update(b_enc=t["b_mag"])), "unknown tensor b_enc"),
    "transcoder that centres": (
        f"{S6}/transcoder",
        fields(apply_b_dec_to_input=True),
        "a transcoder cannot subtract b_dec",
    ),
    "transcoder that normalises": (
        f"{S6}/transcoder",
        fields(normalize_activations="layer_norm"),
        "a transcoder neither subtracts",
    ),
    "transcoder to nowhere": (
        f"{S6}/transcoder",
        nested("metadata", "hook_name_out"),
        "which hook point it writes; pass --hook-out",
    ),
    "transcoder backwards": (
        f"{S6}/transcoder",
        nested("metadata", hook_name_out=RESID),
        "which comes after blocks.0.hook_resid_post",
    ),
    "skip missing": (f"{S6}/skip_transcoder", gone("W_skip"), "the tensor W_skip of a skip_transcoder is missing"),
    "skip too many": (
        f"{S6}/skip_transcoder",
        fields(architecture="transcoder"),
        "it holds W_skip, but the architecture is transcoder",
    ),
    "skip transposed, square": (f"{S6}/skip_transcoder", transposed("W_skip"), OTHER),
    "skip transposed": (
        f"{S6}/skip_transcoder_wider",
        transposed("W_skip"),
        r"W_skip must have shape \[16, 20\], got its transpose",
    ),
    "encoder transposed": (
        f"{S6}/standard_none",
        transposed("W_enc"),
        r"W_enc must have shape \[16, 64\], got its transpose",
    ),
    "decoder transposed": (
        f"{S6}/standard_none",
        transposed("W_dec"),
        r"W_dec must have shape \[64, 16\], got its transpose",
    ),
    "tensor too many": (f"{S6}/standard_none", tensors(lambda t: t.update(mean=t["b_dec"])), "unknown tensor mean"),
    "not finite": (f"{S6}/standard_none", tensors(not_finite), "W_enc holds NaN or Inf"),
    "another width in the config": (
        f"{S6}/standard_none",
        fields(d_sae=128),
        "d_sae is 128, but by its tensors it is 64",
    ),
    "another model": (
        f"{S6}/standard_none",
        nested("metadata", hook_name="blocks.0.mlp.hook_post"),
        "its d_in is 16, but .* has width 20",
    ),
    "a layer the model lacks": (
        f"{S6}/standard_none",
        nested("metadata", hook_name="blocks.7.hook_resid_post"),
        "no hook point",
    ),
    "an unknown architecture": (
        f"{S6}/standard_none",
        fields(architecture="softmax"),
        "unknown architecture 'softmax'",
    ),
    "an unknown field": (f"{S6}/standard_none", fields(temperature=2), "--ignore-config-field temperature"),
    "a note in the metadata": (f"{S6}/standard_none", nested("metadata", comment="by hand"), SAME),
    "one head": (
        f"{S6}/standard_none",
        nested("metadata", hook_head_index=0),
        "an SAE on one head alone is not supported",
    ),
    "modules in place of hooks": (
        f"{S6}/standard_none",
        nested("metadata", hook_name="transformer.h.0", model_class_name="AutoModelForCausalLM"),
        SAME,
    ),
    "training's threshold missing": (
        f"{S6}_training/batchtopk_checkpoint",
        gone("topk_threshold"),
        "depends on the other tokens of a batch",
    ),
    "training's decoder norms left out": (
        f"{S6}_training/batchtopk_rescaled_checkpoint",
        fields(rescale_acts_by_decoder_norm=False),
        OTHER,
    ),
    "training's log threshold": (
        f"{S6}_training/batchtopk_inference",
        tensors(lambda t: t.update(log_threshold=np.log(t.pop("threshold")))),
        SAME,
    ),
    # SAELens before 6.
    "renamed: true is the average": (f"{S5}/standard_none", fields(normalize_activations=True), SAME),
    "topk without its k": (f"{S5}/topk", fields("activation_fn_kwargs"), "the field 'k' is missing"),
    "topk with more": (f"{S5}/topk", fields(activation_fn_kwargs={"k": 8, "postact": "id"}), "must be the k of a topk"),
    "topk called so": (f"{S5}/topk", fields(architecture="topk"), SAME),
    "tanh": (f"{S5}/standard_none", fields(activation_fn_str="tanh-relu"), "must be 'relu' or 'topk', got 'tanh-relu'"),
    "fine-tuning forgotten": (
        f"{S5}/standard_finetuned",
        fields(finetuning_scaling_factor=False),
        "but the config says",
    ),
    "fine-tuning without its tensor": (f"{S5}/standard_none", fields(finetuning_scaling_factor=True), "is missing"),
    "fine-tuning by its older name": (
        f"{S5}/standard_finetuned",
        tensors(lambda t: t.update(scaling_factor=t.pop("finetuning_scaling_factor"))),
        SAME,
    ),
    "a scale of ones": (f"{S5}/standard_none", tensors(ones), SAME),
    "a layer that is another": (f"{S5}/standard_none", fields(hook_layer=1), "hook_layer is 1, but hook_name is"),
    "sparsity beside it": (f"{S5}/standard_none", sparsity, SAME),
    # dictionary_learning.
    "a class too new": (f"{DL}/standard", nested("trainer", dict_class="CrossCoder"), "dict_class must be one of"),
    "centring that the class does not do": (
        f"{DL}/standard",
        nested("trainer", dict_class="AutoEncoderNew"),
        "the tensor decoder.bias of an AutoEncoderNew is missing",
    ),
    "threshold of a topk": (f"{DL}/topk", nested("trainer", dict_class="BatchTopKSAE"), OTHER),
    "k that is another": (f"{DL}/topk", nested("trainer", k=4), "its k is 8, but that of its config 4"),
    "k in the tensors alone": (f"{DL}/topk", nested("trainer", "k"), SAME),
    "no buffer": (f"{DL}/standard", fields("buffer"), SAME),
    "no submodule": (
        f"{DL}/standard",
        nested("trainer", submodule_name=None),
        "it says layer 0, but no submodule .*pass --hook",
    ),
    "an unknown submodule": (
        f"{DL}/standard",
        nested("trainer", submodule_name="h.0.x"),
        "'h.0.x' is no hook point .*pass --hook",
    ),
    "another layer": (
        f"{DL}/standard",
        nested("trainer", layer=1),
        "layer is 1, but submodule_name is 'transformer.h.0'",
    ),
    "input to output": (f"{DL}/standard", nested("buffer", io="in_and_out"), "io is 'in_and_out'"),
    "the input": (f"{DL}/standard", nested("buffer", io="in"), SAME),
    "an unknown setting": (f"{DL}/standard", nested("trainer", temperature=2), "--ignore-config-field temperature"),
    "another dict_size": (
        f"{DL}/standard",
        nested("trainer", dict_size=32),
        "dict_size is 32, but by its tensors it is 64",
    ),
    # Sparsify.
    "latents by the factor": ("sparsify/topk", fields(num_latents=64, expansion_factor=1), SAME),
    "other latents": ("sparsify/topk", fields(expansion_factor=8), "it says 128 latents, but by its tensors it has 64"),
    "k groups": ("sparsify/groupmax", fields(k=16), OTHER),
    "k groups that do not divide": ("sparsify/groupmax", fields(k=7), "groupmax needs k groups of one size"),
    "topk as groupmax": ("sparsify/topk", fields(activation="groupmax"), OTHER),
    "another activation": ("sparsify/topk", fields(activation="jumprelu"), "activation must be 'topk' or 'groupmax'"),
    "signed": ("sparsify/topk", fields(signed=True), "signed features are not supported"),
    "decoder as SAELens takes it": ("sparsify/topk", transposed("W_dec"), "W_dec must have shape .* got its transpose"),
    "encoder as here": ("sparsify/topk", transposed("encoder.weight"), "W_enc must have shape .* got its transpose"),
    "normalize_decoder does not centre": ("sparsify/topk", fields(normalize_decoder=False), SAME),
    "a transcoder of 2024 as one of today": ("sparsify/transcoder_old", fields(activation="topk"), OTHER),
    "a transcoder of today as one of 2024": ("sparsify/transcoder", fields("activation"), OTHER),
    "an autoencoder as transcoder": ("sparsify/topk", fields(transcode=True), OTHER),
    "skip without saying so": (
        "sparsify/transcoder_skip",
        fields(skip_connection=False),
        "W_skip belongs to a skip_connection",
    ),
    "saying so without skip": (
        "sparsify/transcoder",
        fields(skip_connection=True),
        "W_skip belongs to a skip_connection",
    ),
    "an unknown directory": ("sparsify/topk", renamed("h.0", "best"), "'best' by the directory's name.*pass --hook"),
    # Gemma Scope.
    "no layer in the path": (
        "gemma_scope/res",
        renamed(f"{GEMMA}/params.npz", "params.npz"),
        "its path does not say .*pass --hook",
    ),
    "an unscaled embedding": (
        "gemma_scope/embedding",
        renamed("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz", f"{GEMMA}/params.npz"),
        OTHER,
    ),
    "Gemma's threshold missing": ("gemma_scope/res", gone("threshold"), "the tensor threshold is missing"),
    "Gemma's scale": (
        "gemma_scope/res",
        tensors(lambda t: t.update(scaling_factor=2 * t["b_enc"])),
        "its scaling_factor is not 1",
    ),
    "Gemma's scale of ones": ("gemma_scope/res", tensors(ones), SAME),
    "an array that is a program": ("gemma_scope/res", object_array, "damaged or no archive of plain arrays"),
    # circuit-tracer.
    "a threshold below zero": (
        "circuit_tracer/jumprelu",
        tensors(lambda t: t.update({"activation_function.threshold": -t["activation_function.threshold"]})),
        "a threshold is below 0",
    ),
    "encoder as elsewhere": ("circuit_tracer/relu", transposed("W_enc"), "W_enc must have shape .* got its transpose"),
    "skip of circuit-tracer transposed": ("circuit_tracer/skip", transposed("W_skip"), OTHER),
    "no config": ("circuit_tracer/relu", lambda path: (path / "config.yaml").unlink(), "does not say .*pass --hook"),
    "a config that is a program": (
        "circuit_tracer/relu",
        lambda path: (path / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch executed']"),
        "config.yaml is not YAML",
    ),
    "another kind of set": (
        "circuit_tracer/relu",
        lambda path: (path / "config.yaml").write_text("model_kind: cross_layer_transcoder"),
        "model_kind must be transcoder_set",
    ),
}


def _place(path: Path, sample: str) -> Path:
    """Where the source is after the change."""
    asked = path / MANIFEST[sample]["source"]
    if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
        return asked
    (moved,) = [*path.rglob("cfg.json"), *path.rglob("params.npz")]
    return moved.parent


def _read(source: SAESource, bundle: str, out: Path) -> Any:
    convert(bundle, [source], out)
    saes = load_bundle(out).saes
    (added,) = set(saes) - set(load_bundle(bundle).saes)
    return saes[added]


def _off(sae: Any, sample: str) -> float:
    """By how much features and output miss those of the package, relative to the largest."""
    expected = np.load(SAMPLES / sample / "expected.npz")
    x = jnp.asarray(expected["x"])
    pairs = ((encode(sae, x), expected["features"]), (decode(sae, encode(sae, x), x), expected["output"]))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("row", ROWS)
def test_traps(row: str, model: str, tmp_path: Path) -> None:
    sample, change, outcome = ROWS[row]
    path = tmp_path / "sample"
    shutil.copytree(SAMPLES / sample, path)
    change(path)
    source = SAESource(str(_place(path, sample)))
    if outcome not in (SAME, OTHER):
        with pytest.raises(InputError, match=outcome) as error:
            convert(model, [source], "bundle")
        assert "\n" not in str(error.value)
        assert not Path("bundle").exists()
        assert not Path("executed").exists()
        return
    off = _off(_read(source, model, tmp_path / "bundle"), sample)
    assert off < TOLERANCES["sae"]["float32"] if outcome == SAME else off > 0.01


def test_the_trap_would_spring(tmp_path: Path) -> None:
    """That nothing was executed means something only if it would have been."""
    pickle.loads(pickle.dumps(Trap()))
    assert Path("executed").exists()
