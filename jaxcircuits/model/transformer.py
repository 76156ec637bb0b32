"""The forward pass: parts written for the last axes, any leading batch axes, differences between families as data."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model.activations import ACTIVATIONS
from jaxcircuits.model.hooks import Edits, Hooks
from jaxcircuits.model.rotary import Turns, turned, turns
from jaxcircuits.types import AttentionWeights, MLPWeights, ModelWeights, NormWeights

Hook = Callable[[str, Array], Array]


def forward(
    params: ModelWeights,
    cfg: ModelConfig,
    tokens: Int[Array, "*batch pos"],
    *,
    taps: Iterable[str] = (),
    edits: Edits | None = None,
    logits_at: slice | Int[Array, "n"] | None = slice(None),
) -> tuple[Float[Array, "*batch n d_vocab"] | None, dict[str, Array]]:
    """Runs the model.

    Pure, so the caller jits, vmaps and differentiates it. Nothing after the last tap is computed when
    `logits_at` is `None`.

    Args:
        params: The weights; their dtype is the dtype of the computation.
        cfg: The architecture.
        tokens: Token ids.
        taps: Hook points whose values are returned (after an edit, if there is one).
        edits: New values by hook point: an array, or a function of the value that arrives there.
        logits_at: Positions whose logits are computed: all by default, none for `None`.

    Returns:
        The logits (or `None`) and the tapped values by name.

    Raises:
        InputError: An unknown hook point, an edit that changes a shape, or more tokens than the context holds.

    Source: GPT-Neo, GPT-2, GPT-NeoX and Gemma 2 as in Hugging Face transformers 5.24; hook points as in
    TransformerLens 3.9.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits import forward, load_bundle
    >>> bundle = load_bundle()
    >>> tokens = jnp.asarray(bundle.tokenize("Once upon a time"))
    >>> _, acts = forward(bundle.params, bundle.cfg, tokens, taps=["blocks.0.mlp.hook_post"], logits_at=None)
    >>> acts["blocks.0.mlp.hook_post"].shape == (len(tokens), bundle.cfg.d_mlp)
    True
    """
    pos = tokens.shape[-1]
    if pos > cfg.n_ctx:
        raise InputError(f"the model's context holds {cfg.n_ctx} tokens, got {pos}; shorten the prompt.")
    hook = Hooks(cfg, taps, edits)
    at = jnp.arange(pos)
    return run_blocks(params, cfg, tokens, hook, at, at, logits_at), hook.acts


def run_blocks(
    params: ModelWeights,
    cfg: ModelConfig,
    tokens: Int[Array, "*batch pos"],
    hook: Hooks,
    q_pos: Int[Array, "pos"],
    k_pos: Int[Array, "k_pos"],
    logits_at: slice | Int[Array, "n"] | None,
) -> Float[Array, "*batch n d_vocab"] | None:
    """Embedding, blocks and unembedding.

    Args:
        params: The weights.
        cfg: The architecture.
        tokens: Token ids.
        hook: What every named value passes through.
        q_pos: The tokens' positions.
        k_pos: The positions of the keys that scores are of: the same, or those of a cache.
        logits_at: Indices of the tokens whose logits are computed, or `None`.
    """
    embedded = params.W_E[tokens]
    resid = hook("hook_embed", embedded if cfg.embedding_scale == 1 else embedded * cfg.embedding_scale)
    if params.W_pos is not None:
        resid = resid + hook("hook_pos_embed", jnp.broadcast_to(params.W_pos[q_pos], resid.shape))
    by = turns(cfg, q_pos, resid.dtype)
    for layer, block in enumerate(params.blocks):
        if logits_at is None and hook.satisfied:
            return None
        name = f"blocks.{layer}"
        before = hook(f"{name}.hook_resid_pre", resid)
        normed = norm(before, block.ln1, cfg, hook, f"{name}.ln1")
        mask = causal_mask(q_pos, k_pos, cfg.window if cfg.attention[layer] == "local" else None)
        attn_out = attention(normed, block.attn, cfg, mask, by, hook, f"{name}.attn")
        attn_out = norm(attn_out, block.ln1_post, cfg, hook, f"{name}.ln1_post") if cfg.norms_behind else attn_out
        resid = before + hook(f"{name}.hook_attn_out", attn_out)
        resid = resid if cfg.parallel_residual else hook(f"{name}.hook_resid_mid", resid)
        read = before if cfg.parallel_residual else resid
        normed = norm(read, block.ln2, cfg, hook, f"{name}.ln2")
        mlp_out = mlp(normed, block.mlp, cfg.activation, hook, f"{name}.mlp")
        mlp_out = norm(mlp_out, block.ln2_post, cfg, hook, f"{name}.ln2_post") if cfg.norms_behind else mlp_out
        resid = hook(f"{name}.hook_resid_post", resid + hook(f"{name}.hook_mlp_out", mlp_out))
    if logits_at is None and hook.satisfied:
        return None
    final = norm(resid, params.ln_final, cfg, hook, "ln_final")
    if logits_at is None:
        return None
    logits = einsum(final[..., logits_at, :], params.W_U, "... n d_model, d_model d_vocab -> ... n d_vocab")
    return capped(logits + params.b_U, cfg.logit_cap)


def capped(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Brings numbers softly into `-cap..cap`; small ones stay nearly what they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def causal_mask(
    q_pos: Int[Array, "q_pos"], k_pos: Int[Array, "k_pos"], window: int | None
) -> Bool[Array, "q_pos k_pos"]:
    """Which keys a query sees: none later than itself and, with a window, its last `window` keys, itself included."""
    q_pos, k_pos = q_pos[:, None], k_pos[None, :]
    seen = k_pos <= q_pos
    return seen if window is None else seen & (k_pos > q_pos - window)


def norm(
    x: Float[Array, "... d_model"], weights: NormWeights | None, cfg: ModelConfig, hook: Hook, name: str
) -> Float[Array, "... d_model"]:
    """Layer or RMS norm; without weights (`None`) they have been folded into what reads it."""
    x = x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x
    scale = hook(f"{name}.hook_scale", jnp.sqrt((x**2).mean(-1, keepdims=True) + cfg.eps))
    x = hook(f"{name}.hook_normalized", x / scale)
    if weights is None:
        return x
    return x * weights.w if weights.b is None else x * weights.w + weights.b


def attention(
    x: Float[Array, "... pos d_model"],
    weights: AttentionWeights,
    cfg: ModelConfig,
    mask: Bool[Array, "q_pos k_pos"],
    by: Turns | None,
    hook: Hook,
    name: str,
) -> Float[Array, "... pos d_model"]:
    """Multi-head attention; `by` is what queries and keys are turned by, where positions are rotary."""
    project = "... pos d_model, head d_model d_head -> ... pos head d_head"
    q = hook(f"{name}.hook_q", einsum(x, weights.W_Q, project) + weights.b_Q)
    k = hook(f"{name}.hook_k", einsum(x, weights.W_K, project) + weights.b_K)
    v = hook(f"{name}.hook_v", einsum(x, weights.W_V, project) + weights.b_V)
    if by is not None:
        by = Turns(*(part[:, None] for part in by))  # the same for every head
        q, k = hook(f"{name}.hook_rot_q", turned(q, by)), hook(f"{name}.hook_rot_k", turned(k, by))
    if cfg.kv_heads < cfg.n_heads:  # each is read by several queries' heads in a row
        k, v = (jnp.repeat(x, cfg.n_heads // cfg.kv_heads, axis=-2) for x in (k, v))
    scores = einsum(q, k, "... q_pos head d_head, ... k_pos head d_head -> ... head q_pos k_pos")
    scores = capped(scores * cfg.attention_scale, cfg.score_cap)
    scores = hook(f"{name}.hook_attn_scores", jnp.where(mask, scores, -jnp.inf))
    pattern = hook(f"{name}.hook_pattern", jax.nn.softmax(scores, axis=-1))
    z = hook(
        f"{name}.hook_z", einsum(pattern, v, "... head q_pos k_pos, ... k_pos head d_head -> ... q_pos head d_head")
    )
    # One vector a head is n_heads times the size of their sum, so it is formed only where somebody looks.
    if isinstance(hook, Hooks) and hook.wants(f"{name}.hook_result"):
        result = hook(
            f"{name}.hook_result", einsum(z, weights.W_O, "... head d_head, head d_head d_model -> ... head d_model")
        )
        return result.sum(-2) + weights.b_O
    return einsum(z, weights.W_O, "... head d_head, head d_head d_model -> ... d_model") + weights.b_O


def mlp(
    x: Float[Array, "... d_model"], weights: MLPWeights, activation: str, hook: Hook, name: str
) -> Float[Array, "... d_model"]:
    """Two linear maps around an activation function; gated, that is of a third one and multiplies the first."""
    act, project = ACTIVATIONS[activation].value, "... d_model, d_model d_mlp -> ... d_mlp"
    linear = einsum(x, weights.W_in, project) + weights.b_in
    if weights.W_gate is None:
        post = act(hook(f"{name}.hook_pre", linear))
    else:
        gate = act(hook(f"{name}.hook_pre", einsum(x, weights.W_gate, project)))
        post = gate * hook(f"{name}.hook_pre_linear", linear)
    post = hook(f"{name}.hook_post", post)
    return einsum(post, weights.W_out, "... d_mlp, d_mlp d_model -> ... d_model") + weights.b_out
