"""Records tiny autoencoders of every format, as their own packages write, encode and decode them.

    python scripts/record_sae_samples.py tests/convert/samples

Each package needs an environment of its own (SAELens 3, 5 and 6 exclude each other; circuit-tracer wants an older
transformers): run the script in each, and it records what that environment has. Of these the samples were made:

    sae-lens==6.54.12 eai-sparsify==1.3.3, and dictionary-learning==0.1.0 without its dependencies
    sae-lens==5.11.0 "pyarrow<20"
    sae-lens==3.23.4 "pyarrow<20"
    circuit-tracer==0.5.0

`manifest.json` says which versions wrote what. A sample is a directory with `expected.npz`: inputs `x`, the package's
`features` of them and its `output`, computed in float32 whatever the autoencoder is stored in.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sae_recorder import (
    ABOUT,
    D_IN,
    D_OUT,
    D_SAE,
    MLP_OUT,
    NORMED,
    RESID,
    K,
    N,
    Recorder,
    change_json,
    randomized,
)


def sae_lens_6(record: Recorder) -> None:
    """SAELens 6: inference classes as `save_model` writes them, and training classes as both ways write them."""
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    def one(name: str, architecture: str, hook: str = RESID, note: dict[str, Any] | None = None, **fields: Any) -> None:
        cls, cfg_cls = get_sae_class(architecture)
        transcodes = "transcoder" in architecture
        about = ABOUT | {"hook_name": NORMED if transcodes else hook, "hook_head_index": None} | (note or {})
        if transcodes:
            about["hook_name_out"] = MLP_OUT if fields.setdefault("d_out", D_IN) == D_IN else "blocks.1.mlp.hook_post"
            fields["apply_b_dec_to_input"] = False
        cfg = cfg_cls(**{"d_in": D_IN, "d_sae": D_SAE, **fields}, metadata=SAEMetadata(**about))
        sae = randomized(cls(cfg), f"6/{name}")
        shape = (N, 4, 4) if hook.endswith("hook_z") else (N, D_IN)
        wide = sae if cfg.dtype == "float32" else copy.deepcopy(sae).to(torch.float32)
        record(f"sae_lens_6/{name}", sae.save_model, wide.encode, wide, shape=shape, hook=about["hook_name"])

    for word in ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening"):
        one(f"standard_{word}", "standard", normalize_activations=word)
    one("standard_not_centred", "standard", apply_b_dec_to_input=False)
    one("standard_hook_z", "standard", "blocks.0.attn.hook_z", reshape_activations="hook_z")
    one("standard_processed", "standard", note={"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    one("standard_raw", "standard", note={"model_from_pretrained_kwargs": {"center_writing_weights": False}})
    one("standard_bfloat16", "standard", dtype="bfloat16")
    one("standard_float16", "standard", dtype="float16")
    one("topk", "topk", k=K)
    one("topk_rescaled", "topk", k=K, rescale_acts_by_decoder_norm=True)
    one("topk_layer_norm", "topk", k=K, normalize_activations="layer_norm")
    one("jumprelu", "jumprelu")
    one("jumprelu_constant_norm", "jumprelu", normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False)
    one("gated", "gated")
    one("gated_not_centred", "gated", apply_b_dec_to_input=False)
    one("gated_bfloat16", "gated", dtype="bfloat16")
    for architecture in ("transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder"):
        one(architecture, architecture)
    one("transcoder_wider", "transcoder", d_out=D_OUT)
    one("skip_transcoder_wider", "skip_transcoder", d_out=D_OUT)

    def trained(name: str, architecture: str, *, scale: bool | None = None, **fields: Any) -> None:
        cls, cfg_cls = get_sae_training_class(architecture)
        fields |= {} if scale is None else {"rescale_acts_by_decoder_norm": scale}
        about = SAEMetadata(**ABOUT, hook_name=RESID)
        sae = randomized(cls(cfg_cls(d_in=D_IN, d_sae=D_SAE, metadata=about, **fields)), f"6t/{name}")
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold += 0.7
        path = f"sae_lens_6_training/{name}"
        record(f"{path}_inference", sae.save_inference_model, None)
        read = SAE.load_from_disk(record.out / f"{path}_inference")
        record(f"{path}_inference", sae.save_inference_model, read.encode, read, hook=RESID)
        record(f"{path}_checkpoint", sae.save_model, read.encode, read, hook=RESID)

    trained("standard", "standard")
    trained("jumprelu", "jumprelu")
    trained("gated", "gated")
    trained("topk", "topk", scale=False, k=K)
    trained("topk_rescaled", "topk", scale=True, k=K)
    trained("batchtopk", "batchtopk", scale=False, k=float(K))
    trained("batchtopk_rescaled", "batchtopk", scale=True, k=float(K))
    trained("matryoshka", "matryoshka_batchtopk", scale=True, k=float(K), matryoshka_widths=[16, D_SAE])

    for architecture, fields in {
        "abstopk": {"k": 1},
        "matching_pursuit": {},
        "temporal": {"n_heads": 2, "bottleneck_factor": 2},
    }.items():
        cls, cfg_cls = get_sae_class(architecture)
        cfg = cfg_cls(d_in=D_IN, d_sae=8, metadata=SAEMetadata(**ABOUT, hook_name=RESID), **fields)
        record(f"sae_lens_6/refused_{architecture}", cls(cfg).save_model, None, refused=f"architecture {architecture}")
    one("refused_head", "standard", "blocks.0.attn.hook_q", {"hook_head_index": 1})
    record.samples["sae_lens_6/refused_head"] |= {"refused": "hook_head_index is 1"}


def sae_lens_old(record: Recorder) -> None:
    """SAELens before 6: one class, and the names that its configs had earlier still."""
    from sae_lens.sae import SAE, SAEConfig

    group = f"sae_lens_{version('sae-lens').split('.')[0]}"
    flat = {"activation_fn_str": "relu", "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, **ABOUT}
    flat |= {"hook_name": RESID, "hook_layer": 0, "hook_head_index": None, "dataset_trust_remote_code": True}
    flat |= {"normalize_activations": "none", "dtype": "float32", "device": "cpu"}
    flat |= {"sae_lens_training_version": version("sae-lens"), "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE}

    def one(name: str, change: Callable[[dict[str, Any]], Any] | None = None, **fields: Any) -> None:
        sae = randomized(SAE(SAEConfig(**{**flat, **fields})), f"{group}/{name}")

        def write(path: Path) -> None:
            sae.save_model(path)
            if change is not None:
                change_json(path / "cfg.json", change)

        shape = (N, 4, 4) if fields.get("hook_name", "").endswith("hook_z") else (N, D_IN)
        record(f"{group}/{name}", write, sae.encode, sae, shape=shape, hook=fields.get("hook_name", RESID))

    def rename(fields: dict[str, Any]) -> None:
        """As SAELens 1 and 2 called them."""
        for new, old in (("hook_name", "hook_point"), ("hook_layer", "hook_point_layer")):
            fields[old] = fields.pop(new)
        fields["hook_point_head_index"] = fields.pop("hook_head_index")
        fields["activation_fn"] = fields.pop("activation_fn_str")
        fields["normalize_activations"] = False
        for name in ("architecture", "apply_b_dec_to_input", "finetuning_scaling_factor", "prepend_bos"):
            del fields[name]

    for word in ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"):
        one(f"standard_{word}", normalize_activations=word)
    one("standard_not_centred", apply_b_dec_to_input=False)
    one("standard_hook_z", hook_name="blocks.0.attn.hook_z")
    one("standard_finetuned", finetuning_scaling_factor=True)
    one("standard_renamed", rename)
    one("topk", activation_fn_str="topk", activation_fn_kwargs={"k": K})
    one("jumprelu", architecture="jumprelu")
    one("gated", architecture="gated")


def dictionary_learning(record: Recorder) -> None:
    """dictionary_learning: every class as its trainer makes it, with that trainer's config."""
    from dictionary_learning.dictionary import AutoEncoderNew
    from dictionary_learning.trainers import (
        BatchTopKTrainer,
        GatedSAETrainer,
        JumpReluTrainer,
        PAnnealTrainer,
        StandardTrainer,
        TopKTrainer,
    )
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    base = {"steps": 10000, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "tiny", "device": "cpu"}
    buffer = {"d_submodule": D_IN, "io": "out", "n_ctxs": 3, "ctx_len": 16, "refresh_batch_size": 2}
    buffer |= {"out_batch_size": 8, "device": "cpu"}

    def one(
        name: str,
        trainer_class: Any,
        submodule: str | None = "transformer.h.0",
        *,
        dictionary: Any = None,
        threshold: float | None = None,
        backup: bool = False,
        hook: str = RESID,
        **fields: Any,
    ) -> None:
        trainer = trainer_class(**base, submodule_name=submodule, **fields)
        ae = randomized(dictionary or trainer.ae, f"dl/{name}")
        if threshold is not None:
            ae.threshold.fill_(threshold)
        config = {"trainer": trainer.config, "buffer": buffer}
        if dictionary is not None:
            config["trainer"] |= {"dict_class": type(dictionary).__name__}

        def write(path: Path) -> None:
            (path / "trainer_0").mkdir()
            state: Any = {key: value.cpu() for key, value in ae.state_dict().items()}
            if backup:
                optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0, 1)}]}
                state = {"step": 3, "ae": ae.state_dict(), "optimizer": optimizer, "config": {}, "norm_factor": 1.0}
            torch.save(state, path / "trainer_0" / "ae.pt")
            (path / "trainer_0" / "config.json").write_text(json.dumps(config, indent=4, default=str))

        asked = {"hook": hook} if submodule is None else {}
        record(
            f"dictionary_learning/{name}",
            write,
            ae.encode,
            lambda x: ae.decode(ae.encode(x)),
            "trainer_0",
            hook=hook,
            asked=asked,
        )

    one("standard", StandardTrainer)
    one("standard_asked", StandardTrainer, None, hook="blocks.1.hook_mlp_out")
    one("standard_mlp", StandardTrainer, "transformer.h.0.mlp", hook="blocks.0.hook_mlp_out")
    one("standard_backup", StandardTrainer, backup=True)
    one("april_update", StandardTrainerAprilUpdate)
    one("p_anneal", PAnnealTrainer, "resid_post_layer_0")
    one("new", StandardTrainer, dictionary=AutoEncoderNew(D_IN, D_SAE))
    one("gated", GatedSAETrainer)
    one("jumprelu", JumpReluTrainer)
    one("topk", TopKTrainer, k=K)
    one("batchtopk", BatchTopKTrainer, k=K, threshold=0.7)
    one("batchtopk_without_threshold", BatchTopKTrainer, k=K)
    one("matryoshka", MatryoshkaBatchTopKTrainer, k=K, threshold=0.6, group_fractions=[0.25, 0.75])


def sparsify(record: Recorder) -> None:
    """Sparsify: `save_to_disk` into a directory named after the module."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    def one(name: str, module: str, hook: str, dtype: Any = torch.float32, old: bool = False, **fields: Any) -> None:
        cfg = SparseCoderConfig(**{"expansion_factor": D_SAE // D_IN, "k": K, **fields})
        stored = randomized(SparseCoder(D_IN, cfg, dtype=dtype), f"sparsify/{name}")
        coder = copy.deepcopy(stored).float()

        def shifted(x: torch.Tensor) -> torch.Tensor:
            return x - coder.b_dec if old else x  # as it was computed before February 2025

        def dense(x: torch.Tensor) -> torch.Tensor:
            values, indices, _ = coder.encode(shifted(x))
            return torch.zeros(len(x), D_SAE).scatter(1, indices, values)

        def output(x: torch.Tensor) -> torch.Tensor:
            values, indices, _ = coder.encode(shifted(x))
            out = coder.decode(values, indices)
            return out if coder.W_skip is None else out + x @ coder.W_skip.mT

        def write(path: Path) -> None:
            stored.save_to_disk(path / module)
            if old:  # fields that came later, and one that there was
                change_json(path / module / "cfg.json", lambda c: (c.pop("activation"), c.update(signed=False)))

        record(f"sparsify/{name}", write, dense, output, module, hook=hook)

    one("topk", "h.0", RESID)
    one("topk_mlp", "h.0.mlp", "blocks.0.hook_mlp_out")
    one("topk_latents", "h.0", RESID, num_latents=D_SAE, normalize_decoder=False)
    one("topk_bfloat16", "h.0", RESID, torch.bfloat16)
    one("topk_seed", "h.0/seed1", RESID)
    one("groupmax", "h.0", RESID, activation="groupmax")
    one("transcoder", "h.1.mlp", NORMED, transcode=True)
    one("transcoder_skip", "h.1.mlp", NORMED, transcode=True, skip_connection=True)
    one("transcoder_groupmax", "h.1.mlp", NORMED, transcode=True, activation="groupmax")
    one("transcoder_block", "h.1", "blocks.1.hook_resid_pre", transcode=True)
    one("transcoder_old", "h.1.mlp", NORMED, old=True, transcode=True, skip_connection=True)
    one("refused_skip", "h.0", RESID, skip_connection=True)
    record.samples["sparsify/refused_skip"] |= {"refused": "a skip connection of an autoencoder"}


def gemma_scope(record: Recorder) -> None:
    """Gemma Scope: arrays in its layout of paths, read by SAELens' own loader, which would take them from the hub."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    def one(name: str, repo: str, folder: str, hook: str, *, transcoder: bool = False, old_names: bool = False) -> None:
        architecture = "jumprelu_transcoder" if transcoder else "jumprelu"
        cls, cfg_cls = get_sae_class(architecture)
        widths = {"d_in": D_IN, "d_sae": D_SAE} | ({"d_out": D_IN} if transcoder else {})
        made = randomized(cls(cfg_cls(**widths, apply_b_dec_to_input=False)), f"gs/{name}")
        params = {key: value.detach().numpy() for key, value in made.named_parameters()}
        if old_names:
            params = {key.replace("W_", "w_"): value for key, value in params.items()}
        file = record.out / "gemma_scope" / name / repo / folder / "params.npz"

        def write(path: Path) -> None:
            file.parent.mkdir(parents=True)
            np.savez(file, **params)

        load = loaders.gemma_2_transcoder_huggingface_loader if transcoder else loaders.gemma_2_sae_huggingface_loader
        record(f"gemma_scope/{name}", write, None)
        with patch.object(loaders, "hf_hub_download", lambda *args, **kwargs: str(file)):
            cfg, state, *_ = load(f"google/{repo}", folder, cfg_overrides=widths)
        cfg = loaders.handle_pre_6_0_config(cfg) | {"architecture": architecture, **widths}
        sae = SAE.get_sae_class_for_architecture(architecture)(cfg_cls.from_dict(cfg))
        sae.load_state_dict(state)
        shape = (N, 4, 4) if hook.endswith("hook_z") else (N, D_IN)
        record(f"gemma_scope/{name}", write, sae.encode, sae, f"{repo}/{folder}", shape, hook=hook)

    sizes = "width_16k/average_l0_71"
    one("res", "gemma-scope-2b-pt-res", f"layer_0/{sizes}", RESID)
    one("res_lower_case", "gemma-scope-2b-pt-res", f"layer_0/{sizes}", RESID, old_names=True)
    one("mlp", "gemma-scope-2b-pt-mlp", f"layer_0/{sizes}", "blocks.0.hook_mlp_out")
    one("att", "gemma-scope-2b-pt-att", f"layer_0/{sizes}", "blocks.0.attn.hook_z")
    one("embedding", "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", "hook_embed")
    one("transcoder", "gemma-scope-2b-pt-transcoders", f"layer_1/{sizes}", NORMED, transcoder=True)


def circuit_tracer(record: Recorder) -> None:
    """circuit-tracer: single layers of a transcoder set."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
    from safetensors.torch import save_file

    def one(name: str, *, threshold: bool, skip: bool = False) -> None:
        act = JumpReLU(torch.zeros(D_SAE), 0.1) if threshold else torch.nn.functional.relu
        layer = SingleLayerTranscoder(D_IN, D_SAE, act, 1, skip_connection=skip, dtype=torch.float32)
        layer = randomized(layer, f"ct/{name}")
        if threshold:
            layer.activation_function.threshold.abs_()
        config = 'model_kind: transcoder_set\nmodel_name: "tiny"\nscan: "tiny"\n'
        config += f'feature_input_hook: "{"ln2.hook_normalized" if skip else "mlp.hook_in"}"\n'
        config += f'feature_output_hook: "{"hook_mlp_out" if skip else "mlp.hook_out"}"\n'

        def write(path: Path) -> None:
            save_file(layer.state_dict(), path / "layer_1.safetensors")
            (path / "config.yaml").write_text(config)

        def output(x: torch.Tensor) -> torch.Tensor:
            return layer.decode(layer.encode(x), x if skip else None)

        record(f"circuit_tracer/{name}", write, layer.encode, output, "layer_1.safetensors", hook=NORMED)

    one("relu", threshold=False)
    one("jumprelu", threshold=True)
    one("skip", threshold=False, skip=True)
    record(
        "circuit_tracer/refused_cross_layer",
        lambda path: save_file({"W_enc_0": torch.zeros(D_SAE, D_IN)}, path / "W_enc_0.safetensors"),
        None,
        source="W_enc_0.safetensors",
        refused="a cross-layer transcoder writes several layers",
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description="Record autoencoders of the installed packages.")
    arguments.add_argument("out", type=Path)
    out = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    found = False
    kinds: dict[str, tuple[Callable[[Recorder], None], ...]] = {
        "sae-lens": (),
        "dictionary-learning": (dictionary_learning,),
        "eai-sparsify": (sparsify,),
        "circuit-tracer": (circuit_tracer,),
    }
    for package, parts in kinds.items():
        try:
            number = version(package)
        except PackageNotFoundError:
            continue
        if package == "sae-lens":
            parts = (sae_lens_6, gemma_scope) if int(number.split(".")[0]) >= 6 else (sae_lens_old,)
        for part in parts:
            torch.manual_seed(0)
            recorder = Recorder(out)
            part(recorder)
            recorder.write_manifest((package,))
            found = True
            print(f"{package} {number}: {len(recorder.samples)} samples")
    if not found:
        sys.exit(f"none of {', '.join(kinds)} is installed here")


if __name__ == "__main__":
    main()
