"""The independent check: PyTorch and TransformerLens, run the original notebook's way.

Nothing here calls the package's mathematics; it only reads the arrays of its weight trees. Results are numpy arrays.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from jaxcircuits.config import ModelConfig
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights
from tests.helpers import TOLERANCES, assert_close

STEP_FLAGS = {
    "fold_layer_norm": "fold_ln",
    "center_writing_weights": "center_writing_weights",
    "center_unembed": "center_unembed",
    "fold_value_biases": "fold_value_biases",
}
"""TransformerLens' argument for each processing step."""


def torch_state(params: ModelWeights, dtype: str = "float32") -> dict[str, Any]:
    """The weight tree as a TransformerLens state dict."""
    import torch

    named: dict[str, Any] = {"embed.W_E": params.W_E, "pos_embed.W_pos": params.W_pos}
    named |= {"unembed.W_U": params.W_U, "unembed.b_U": params.b_U}
    for prefix, norm in [("ln_final", params.ln_final)]:
        named |= {} if norm is None else {f"{prefix}.{k}": w for k, w in norm._asdict().items()}
    for layer, block in enumerate(params.blocks):
        for part, weights in block._asdict().items():
            if weights is not None:
                named |= {f"blocks.{layer}.{part}.{k}": w for k, w in weights._asdict().items()}
    return {k: torch.tensor(np.asarray(w), dtype=getattr(torch, dtype)).contiguous() for k, w in named.items()}


def transformer_lens_model(
    cfg: ModelConfig, params: ModelWeights, *, steps: Iterable[str] | None = None, dtype: str = "float32"
) -> Any:
    """A `HookedTransformer` that holds the given *unprocessed* weights, processed by TransformerLens itself.

    Args:
        cfg: The architecture.
        params: Unprocessed weights.
        steps: The processing steps that TransformerLens applies; those of `cfg` by default, `()` for none.
        dtype: `"float32"`, or `"float64"` without processing (TransformerLens 3 processes in float32).
    """
    torch = pytest.importorskip("torch")
    lens = pytest.importorskip("transformer_lens")
    steps = cfg.processing if steps is None else tuple(steps)
    assert dtype == "float32" or not steps, "TransformerLens 3 processes weights in float32: no oracle for float64"
    assert cfg.attention_scale == 1.0, "GPT-Neo does not scale its scores"
    torch.set_num_threads(1)
    model = lens.HookedTransformer(
        lens.HookedTransformerConfig(
            n_layers=cfg.n_layers,
            d_model=cfg.d_model,
            n_heads=cfg.n_heads,
            d_head=cfg.d_head,
            d_mlp=cfg.d_mlp,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            eps=cfg.eps,
            attn_types=list(cfg.attention),
            window_size=cfg.window,
            act_fn="gelu_new",
            use_attn_scale=False,
            use_local_attn=True,
            scale_attn_by_inverse_layer_idx=False,
            normalization_type="LN",
            original_architecture="GPTNeoForCausalLM",
            init_weights=False,
            device="cpu",
            dtype=getattr(torch, dtype),
        ),
        tokenizer=None,
        move_to_device=False,
    )
    model.load_and_process_state_dict(torch_state(params, dtype), **{f: s in steps for s, f in STEP_FLAGS.items()})
    if not steps:  # the line above goes through float32 on the way
        model.load_state_dict(torch_state(params, dtype), strict=False)
    model.set_use_attn_result(True)
    return model.requires_grad_(False).eval()


def assert_same_weights(ours: ModelWeights, model: Any, raw: ModelWeights) -> None:
    """Asserts that processed weights are TransformerLens', key by key.

    Args:
        ours: Processed by the package.
        model: Holds the same weights, processed by TransformerLens.
        raw: The unprocessed ones: the unit where a sum of terms may cancel.
    """
    theirs, mine, before = model.state_dict(), torch_state(ours), torch_state(raw)
    assert set(mine) == {key for key in theirs if not key.endswith(("attn.mask", "attn.IGNORE"))}
    for key, value in mine.items():
        if not theirs[key].any():
            assert not value.any(), key
        elif key.endswith(("b_O", "b_U")):
            unit = max(float(theirs[key].abs().max()), float(before[key].abs().max()))
            assert float((value - theirs[key]).abs().max()) <= TOLERANCES["oracle"]["float32"] * unit, key
        else:
            assert_close(value.numpy(), theirs[key].numpy(), "oracle", key)


def hugging_face_model(cfg: ModelConfig, params: ModelWeights) -> Any:
    """A Hugging Face `GPTNeoForCausalLM` of the same weights; those it has no place for must be zero."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert cfg.d_model == cfg.n_heads * cfg.d_head
    assert cfg.tied_unembedding and not np.any(params.b_U)
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=cfg.d_vocab,
            max_position_embeddings=cfg.n_ctx,
            hidden_size=cfg.d_model,
            num_layers=cfg.n_layers,
            num_heads=cfg.n_heads,
            intermediate_size=cfg.d_mlp,
            attention_types=[[[kind], 1] for kind in cfg.attention],
            window_size=cfg.window,
            layer_norm_epsilon=cfg.eps,
            resid_dropout=0.0,
            embed_dropout=0.0,
            attention_dropout=0.0,
        )
    )
    names = {"transformer.wte.weight": params.W_E, "transformer.wpe.weight": params.W_pos, "lm_head.weight": params.W_E}
    assert params.ln_final is not None
    names |= {"transformer.ln_f.weight": params.ln_final.w, "transformer.ln_f.bias": params.ln_final.b}
    for layer, block in enumerate(params.blocks):
        assert block.ln1 is not None and block.ln2 is not None
        assert not any(np.any(b) for b in (block.attn.b_Q, block.attn.b_K, block.attn.b_V))
        prefix, attn = f"transformer.h.{layer}", block.attn
        for name, W in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            names[f"{prefix}.attn.attention.{name}_proj.weight"] = (
                np.asarray(W).transpose(0, 2, 1).reshape(-1, cfg.d_model)
            )
        names |= {
            f"{prefix}.attn.attention.out_proj.weight": np.asarray(attn.W_O).reshape(-1, cfg.d_model).T,
            f"{prefix}.attn.attention.out_proj.bias": attn.b_O,
            f"{prefix}.mlp.c_fc.weight": block.mlp.W_in.T,
            f"{prefix}.mlp.c_fc.bias": block.mlp.b_in,
            f"{prefix}.mlp.c_proj.weight": block.mlp.W_out.T,
            f"{prefix}.mlp.c_proj.bias": block.mlp.b_out,
            f"{prefix}.ln_1.weight": block.ln1.w,
            f"{prefix}.ln_1.bias": block.ln1.b,
            f"{prefix}.ln_2.weight": block.ln2.w,
            f"{prefix}.ln_2.bias": block.ln2.b,
        }
    state = {k: torch.tensor(np.asarray(w)).contiguous() for k, w in names.items()}
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval()


def oracle_cache(model: Any, tokens: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and every hook activation; `tokens` is `[batch, pos]` or `[pos]`, and so are the results' first axes."""
    import torch

    ids = _ids(tokens)
    logits, cache = model.run_with_cache(ids[None] if ids.ndim == 1 else ids, return_type="logits")
    take = (lambda x: x[0].numpy()) if ids.ndim == 1 else (lambda x: x.numpy())
    assert isinstance(logits, torch.Tensor)
    return take(logits), {name: take(value) for name, value in cache.items()}


class TorchSAE:
    """A plain ReLU autoencoder in PyTorch."""

    def __init__(self, sae: SAE, dtype: str | None = None) -> None:
        torch = pytest.importorskip("torch")
        assert sae.cfg.activation == "relu", "the oracle knows ReLU autoencoders only"
        to = {} if dtype is None else {"dtype": getattr(torch, dtype)}
        weights = {k: torch.tensor(np.asarray(w), **to) for k, w in sae.weights._asdict().items() if w is not None}
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (weights[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec"))
        self.subtract_b_dec = sae.cfg.subtract_b_dec
        self.hook_name = sae.cfg.hook_name

    def pre_activations(self, x: Any) -> Any:
        """`(x - b_dec) W_enc + b_enc`."""
        return (x - self.b_dec if self.subtract_b_dec else x) @ self.W_enc + self.b_enc

    def encode(self, x: Any) -> Any:
        """Feature activations."""
        return self.pre_activations(x).relu()

    def decode(self, features: Any) -> Any:
        """Reconstruction from feature activations."""
        return features @ self.W_dec + self.b_dec

    def reconstruct(self, x: Any) -> Any:
        """What splicing puts in the place of `x`."""
        return self.decode(self.encode(x))


def splice_hooks(saes: Sequence[TorchSAE], keep_first: bool = False) -> list[tuple[str, Any]]:
    """Forward hooks that put each SAE's reconstruction in the place of its hook's value.

    Args:
        saes: The autoencoders to splice in.
        keep_first: Leave position 0 as it is (BOS not spliced).
    """

    def splice(sae: TorchSAE) -> Any:
        def hook_fn(value: Any, hook: Any) -> Any:
            out = sae.reconstruct(value.flatten(2)).reshape(value.shape)
            if keep_first:
                out = out.clone()
                out[:, 0] = value[:, 0]
            return out

        return hook_fn

    return [(sae.hook_name, splice(sae)) for sae in saes]


def oracle_feature_acts(
    model: Any, tokens: Any, sae: SAE, *, spliced: Sequence[SAE] = (), quantity: str = "activation", keep_first=False
) -> np.ndarray:
    """`[pos, d_sae]`: the SAE's features of the value that arrives at its hook, before its own splice."""
    read = _reader(_torch_sae(model, sae), quantity)
    seen: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        seen.append(read(value[0].flatten(1)).detach().numpy())

    # The reading hook comes first, so it sees the value before a splice at the same place.
    hooks = [(sae.cfg.hook_name, read_hook), *splice_hooks([_torch_sae(model, s) for s in spliced], keep_first)]
    model.run_with_hooks(_ids(tokens)[None], return_type=None, fwd_hooks=hooks)
    return seen[0]


def oracle_hook_value(
    model: Any, tokens: Any, hook_name: str, *, spliced: Sequence[SAE] = (), keep_first: bool = False
) -> np.ndarray:
    """`[pos, d_in]`: the value that leaves a hook, after splices."""
    seen: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        seen.append(value[0].flatten(1).detach().numpy().copy())

    hooks = [*splice_hooks([_torch_sae(model, s) for s in spliced], keep_first), (hook_name, read_hook)]
    model.run_with_hooks(_ids(tokens)[None], return_type=None, fwd_hooks=hooks)
    return seen[0]


def oracle_gradients(
    model: Any,
    tokens: Any,
    source_sae: SAE,
    target_sae: SAE,
    targets: Iterable[tuple[int, int]],
    splice: str = "none",
    *,
    quantity: str = "activation",
    keep_first: bool = False,
) -> np.ndarray:
    """`[n, pos, d_in]`: derivatives of targets with respect to the value that leaves the source hook.

    As the original notebook does it: forward hooks splice the SAEs in, a backward hook on the source hook point
    catches the gradient (it is attached after the splice, so where there is one, of the reconstruction), and every
    target takes one backward pass of its own. The sign is the derivative's; the original's is the opposite.

    Args:
        model: A TransformerLens model.
        tokens: `[pos]` token ids.
        source_sae: The SAE whose hook is differentiated with respect to.
        target_sae: The SAE whose features are differentiated.
        targets: Pairs of position and feature.
        splice: `"none"`, `"source"`, `"target"` or `"both"`.
        quantity: `"activation"` or `"pre_activation"` of the target.
        keep_first: Do not splice position 0.
    """
    source, target = _torch_sae(model, source_sae), _torch_sae(model, target_sae)
    read = _reader(target, quantity)
    chosen = [s for s, when in ((source, ("source", "both")), (target, ("target", "both"))) if splice in when]
    values: list[Any] = []
    gradients: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        values.append(read(value[0].flatten(1)))

    def catch_gradient(gradient: Any, hook: Any) -> None:
        gradients.append(gradient[0].flatten(1).detach().numpy().copy())

    # So that there is a graph at all; of the weights that reach every hook but the embedding's, the smallest: each
    # backward pass fills it.
    model.pos_embed.W_pos.requires_grad_(True)
    try:
        forward_hooks = [(target.hook_name, read_hook), *splice_hooks(chosen, keep_first)]
        with model.hooks(fwd_hooks=forward_hooks, bwd_hooks=[(source.hook_name, catch_gradient)]):
            model(_ids(tokens)[None], return_type=None)
            for position, feature in targets:
                values[0][position, feature].backward(retain_graph=True)
    finally:
        model.pos_embed.W_pos.requires_grad_(False)
        model.zero_grad(set_to_none=True)
    shape = (0, values[0].shape[0], source.W_dec.shape[1])
    return np.stack(gradients) if gradients else np.zeros(shape, values[0].detach().numpy().dtype)


def _torch_sae(model: Any, sae: SAE) -> TorchSAE:
    return TorchSAE(sae, str(model.cfg.dtype).removeprefix("torch."))


def _reader(sae: TorchSAE, quantity: str) -> Any:
    assert quantity in ("activation", "pre_activation")
    return sae.encode if quantity == "activation" else sae.pre_activations


def _ids(tokens: Any) -> Any:
    import torch

    return torch.tensor(np.asarray(tokens), dtype=torch.long)
