"""The other implementation: a bundle's model as TransformerLens has it, and its autoencoders, in PyTorch.

Nothing here calls the package's mathematics; it only reads the arrays of its weight trees. Results are numpy arrays.
torch and TransformerLens are imported when one of these is called, and nowhere else in the package.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights, named_weights

STEP_FLAGS = {
    "fold_layer_norm": "fold_ln",
    "center_writing_weights": "center_writing_weights",
    "center_unembed": "center_unembed",
    "fold_value_biases": "fold_value_biases",
}
"""TransformerLens' argument for each processing step."""

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
"""Endings of what a TransformerLens state dict holds besides weights."""


def require_torch() -> tuple[Any, Any]:
    """`torch` and `transformer_lens`.

    Raises:
        InputError: One of them is not installed.
    """
    try:
        import torch
        import transformer_lens
    except ImportError as error:
        raise InputError(
            f"comparing with PyTorch needs torch and transformer_lens ({error}); pip install 'jaxcircuits[torch]'."
        ) from None
    return torch, transformer_lens


def torch_state(params: ModelWeights, cfg: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """The weight tree as a TransformerLens state dict: a factor of the embeddings is in them there."""
    torch, _ = require_torch()
    state = {
        name: torch.tensor(np.asarray(w), dtype=getattr(torch, dtype)).contiguous()
        for name, w in named_weights(params).items()
    }
    state["embed.W_E"] = state["embed.W_E"] * cfg.embedding_scale
    if cfg.n_kv_heads is not None:
        shared = re.compile(r"(?<=\.attn\.)(?=[Wb]_[KV]$)")
        state = {shared.sub("_", name): w for name, w in state.items()}
    return state


def transformer_lens_model(
    cfg: ModelConfig,
    params: ModelWeights,
    *,
    steps: Iterable[str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attn_result: bool = True,
    **overrides: Any,
) -> Any:
    """A `HookedTransformer` that holds the given *unprocessed* weights, processed before anything is computed.

    In float32 TransformerLens processes them itself. In float64 `processed_state` does: TransformerLens 3 goes
    through float32 there.

    Args:
        cfg: The architecture.
        params: Unprocessed weights.
        steps: The processing steps; those of `cfg` by default, `()` for none.
        dtype: `"float32"` or `"float64"`.
        device: PyTorch's word for where it runs.
        attn_result: Whether `attn.hook_result` is computed, which takes memory.
        overrides: Fields of TransformerLens' config, in place of those that `cfg` says.
    """
    torch, lens = require_torch()
    steps = cfg.processing if steps is None else tuple(steps)
    in_float64 = dtype == "float64"
    folded = in_float64 and "fold_layer_norm" in steps
    fields: dict[str, Any] = {
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "n_heads": cfg.n_heads,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
        "d_vocab": cfg.d_vocab,
        "n_ctx": cfg.n_ctx,
        "eps": cfg.eps,
        "attn_types": list(cfg.attention),
        "window_size": cfg.window,
        "act_fn": cfg.activation,
        "use_attn_scale": cfg.attention_scale != 1.0,
        "attn_scale": 1 / cfg.attention_scale,  # what TransformerLens divides by
        "use_local_attn": True,
        "scale_attn_by_inverse_layer_idx": False,
        "normalization_type": {"layer": "LN", "rms": "RMS"}[cfg.norm] + ("Pre" if folded else ""),
        "use_normalization_before_and_after": cfg.norms_behind,
        "final_rms": cfg.norm == "rms",
        "gated_mlp": cfg.gated,
        "n_key_value_heads": cfg.n_kv_heads,
        "attn_scores_soft_cap": cfg.score_cap or -1.0,  # TransformerLens' word for none
        "output_logits_soft_cap": cfg.logit_cap or -1.0,
        "positional_embedding_type": "rotary" if cfg.rotary else "standard",
        "rotary_dim": cfg.rotary_dim,
        "rotary_base": cfg.rotary_base,
        "rotary_adjacent_pairs": False,
        "parallel_attn_mlp": cfg.parallel_residual,
        "original_architecture": "GPTNeoForCausalLM",
        "init_weights": False,
        "device": device,
        "dtype": getattr(torch, dtype),
    }
    model = lens.HookedTransformer(
        lens.HookedTransformerConfig(**(fields | overrides)), tokenizer=None, move_to_device=False
    )
    state = torch_state(params, cfg, dtype)
    if in_float64:
        missing, unknown = model.load_state_dict(processed_state(state, cfg, steps), strict=False)
        assert not unknown
        assert all(name.endswith(BUFFERS) for name in missing)
    else:
        model.load_and_process_state_dict(state, **{f: s in steps for s, f in STEP_FLAGS.items()})
    model.set_use_attn_result(attn_result)
    if device != "cpu":
        model.to(device, print_details=False)
    return model.requires_grad_(False).eval()


def processed_state(state: dict[str, Any], cfg: ModelConfig, steps: Iterable[str]) -> dict[str, Any]:
    """A state dict after processing steps, in the precision it has.

    Source: TransformerLens 2.18, whose processing is float64 throughout; checked against TransformerLens in float32.
    """
    w, done = dict(state), set(steps)
    own = "" if cfg.n_kv_heads is None else "_"
    blocks = [f"blocks.{layer}." for layer in range(cfg.n_layers)]
    if "fold_layer_norm" in done:
        readers = [(f"{b}ln1", f"{b}attn.{x}") for b in blocks for x in ("W_Q", f"{own}W_K", f"{own}W_V")]
        readers += [(f"{b}ln2", f"{b}mlp.{x}") for b in blocks for x in ("W_in", *(("W_gate",) if cfg.gated else ()))]
        for norm, W in [*readers, ("ln_final", "unembed.W_U")]:
            if cfg.norm == "layer":
                b = W.replace("W_", "b_")
                w[b] = w[b] + (w[f"{norm}.b"] @ w[W])  # the shift through the weight as it was
            w[W] = w[W] * w[f"{norm}.w"][:, None]
            if cfg.norm == "layer":
                w[W] = w[W] - w[W].mean(-2, keepdim=True)
        folded = {f"{norm}.{x}" for norm, _ in (*readers, ("ln_final", "")) for x in "wb"}
        w = {name: value for name, value in w.items() if name not in folded}
    if "center_writing_weights" in done:
        writers = ["embed.W_E", *(() if cfg.rotary else ("pos_embed.W_pos",))]
        writers += [f"{b}{x}" for b in blocks for x in ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out")]
        for name in writers:
            w[name] = w[name] - w[name].mean(-1, keepdim=True)
    if "center_unembed" in done:
        for name in ("unembed.W_U", "unembed.b_U"):
            w[name] = w[name] - w[name].mean(-1, keepdim=True)
    if "fold_value_biases" in done:
        for b in blocks:
            b_V = w[f"{b}attn.{own}b_V"].repeat_interleave(cfg.n_heads // cfg.kv_heads, 0)
            arriving = (b_V[:, :, None] * w[f"{b}attn.W_O"]).sum((0, 1))
            w[f"{b}attn.b_O"] = w[f"{b}attn.b_O"] + arriving
            w[f"{b}attn.{own}b_V"] = 0 * w[f"{b}attn.{own}b_V"]
    return w


def run_with_cache(model: Any, tokens: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and every hook activation; `tokens` is `[batch, pos]` or `[pos]`, and so are the results' first axes."""
    ids = _ids(model, tokens)
    logits, cache = model.run_with_cache(ids[None] if ids.ndim == 1 else ids, return_type="logits")
    take = (lambda x: _numpy(x[0])) if ids.ndim == 1 else _numpy
    return take(logits), {name: take(value) for name, value in cache.items()}


class TorchSAE:
    """A plain autoencoder in PyTorch: ReLU, JumpReLU or TopK of `(x - b_dec) W_enc + b_enc`."""

    def __init__(self, sae: SAE, dtype: str | None = None, device: str = "cpu") -> None:
        torch, _ = require_torch()
        cfg = sae.cfg
        if cfg.activation not in ("relu", "jumprelu", "topk") or cfg.normalization != "none" or cfg.transcodes:
            raise InputError(
                "the PyTorch side knows ReLU, JumpReLU and TopK autoencoders of inputs as they come, got "
                f"{cfg.activation}, normalization {cfg.normalization}{', a transcoder' * cfg.transcodes}; "
                "compare a bundle whose SAEs are of those."
            )
        to = {"device": device} | ({} if dtype is None else {"dtype": getattr(torch, dtype)})
        weights = {k: torch.tensor(np.asarray(w), **to) for k, w in sae.weights._asdict().items() if w is not None}
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (weights[k] for k in ("W_enc", "b_enc", "W_dec", "b_dec"))
        self.threshold = weights.get("threshold")
        self.activation, self.k = cfg.activation, cfg.k
        self.subtract_b_dec = cfg.subtract_b_dec
        self.hook_name = cfg.hook_name

    def pre_activations(self, x: Any) -> Any:
        """`(x - b_dec) W_enc + b_enc`."""
        return (x - self.b_dec if self.subtract_b_dec else x) @ self.W_enc + self.b_enc

    def encode(self, x: Any) -> Any:
        """Feature activations."""
        pre = self.pre_activations(x)
        if self.activation == "jumprelu":
            return pre.relu() * (pre > self.threshold)
        if self.activation == "topk":
            kept = pre.topk(self.k, dim=-1)
            return pre.new_zeros(pre.shape).scatter(-1, kept.indices, kept.values).relu()
        return pre.relu()

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


def feature_acts(
    model: Any, tokens: Any, sae: SAE, *, spliced: Sequence[SAE] = (), quantity: str = "activation", keep_first=False
) -> np.ndarray:
    """`[pos, d_sae]`: the SAE's features of the value that arrives at its hook, before its own splice."""
    read = _reader(_like(model, sae), quantity)
    seen: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        seen.append(_numpy(read(value[0].flatten(1))))

    # The reading hook comes first, so it sees the value before a splice at the same place.
    hooks = [(sae.cfg.hook_name, read_hook), *splice_hooks([_like(model, s) for s in spliced], keep_first)]
    model.run_with_hooks(_ids(model, tokens)[None], return_type=None, fwd_hooks=hooks)
    return seen[0]


def hook_value(
    model: Any, tokens: Any, hook_name: str, *, spliced: Sequence[SAE] = (), keep_first: bool = False
) -> np.ndarray:
    """`[pos, d_in]`: the value that leaves a hook, after splices."""
    seen: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        seen.append(_numpy(value[0].flatten(1)).copy())

    hooks = [*splice_hooks([_like(model, s) for s in spliced], keep_first), (hook_name, read_hook)]
    model.run_with_hooks(_ids(model, tokens)[None], return_type=None, fwd_hooks=hooks)
    return seen[0]


def hook_gradients(
    model: Any,
    tokens: Any,
    source_sae: SAE,
    target_sae: SAE,
    targets: Iterable[Any],
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
    source, target = _like(model, source_sae), _like(model, target_sae)
    read = _reader(target, quantity)
    chosen = [s for s, when in ((source, ("source", "both")), (target, ("target", "both"))) if splice in when]
    values: list[Any] = []
    gradients: list[np.ndarray] = []

    def read_hook(value: Any, hook: Any) -> None:
        values.append(read(value[0].flatten(1)))

    def catch_gradient(gradient: Any, hook: Any) -> None:
        gradients.append(_numpy(gradient[0].flatten(1)).copy())

    # So that there is a graph at all; of the weights that reach every hook but the embedding's, the smallest: each
    # backward pass fills it.
    rotary = model.cfg.positional_embedding_type == "rotary"
    reaching = model.embed.W_E if rotary else model.pos_embed.W_pos
    reaching.requires_grad_(True)
    try:
        forward_hooks = [(target.hook_name, read_hook), *splice_hooks(chosen, keep_first)]
        with model.hooks(fwd_hooks=forward_hooks, bwd_hooks=[(source.hook_name, catch_gradient)]):
            model(_ids(model, tokens)[None], return_type=None)
            for position, feature in targets:
                values[0][position, feature].backward(retain_graph=True)
    finally:
        reaching.requires_grad_(False)
        model.zero_grad(set_to_none=True)
    shape = (0, values[0].shape[0], source.W_dec.shape[1])
    return np.stack(gradients) if gradients else np.zeros(shape, _numpy(values[0]).dtype)


def _like(model: Any, sae: SAE) -> TorchSAE:
    return TorchSAE(sae, str(model.cfg.dtype).removeprefix("torch."), str(model.cfg.device))


def _reader(sae: TorchSAE, quantity: str) -> Any:
    assert quantity in ("activation", "pre_activation")
    return sae.encode if quantity == "activation" else sae.pre_activations


def _ids(model: Any, tokens: Any) -> Any:
    import torch

    return torch.tensor(np.asarray(tokens), dtype=torch.long, device=model.cfg.device)


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy()
