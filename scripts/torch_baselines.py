"""The PyTorch side of `benchmark.py`: the original notebook's way, and three ways that take more care.

The benchmark imports this file. What is timed is `notebook_cell` and `forward_and_encode`, which start from token
ids, and what `careful_loop`, `plain_batched_vjps` and `batched_vjps` return, which start from given activations.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm, relu
from torch_model import Pair
from transformer_lens import HookedTransformer

SPLICES = ("none", "source")
CHUNK = 32
"""Targets at a time in the batched ways. In `batched_vjps`, on two cores, at the original's size, the fastest of 8, 16,
32 and 64."""


def set_threads(n: int | None = None) -> int:
    """Makes PyTorch compute with `n` threads, by default one a core, and returns how many."""
    torch.set_num_threads(n or os.cpu_count() or 1)
    return torch.get_num_threads()


def notebook_cell(
    model: HookedTransformer,
    saes: Pair,
    tokens: Sequence[int] | np.ndarray,
    targets: Iterable[tuple[int, int]],
    splice: str = "none",
) -> np.ndarray:
    """The original notebook's way: TransformerLens hooks, one backward pass a target through the whole model.

    Each pass also adds up gradients of all the model's parameters, which nobody reads. Kinder than the notebook in
    two respects: the autoencoders' weights require no gradients, and the forward pass leaves out the unembedding.

    Returns:
        `[target, d_sae]`: gradients of *minus* each target's activation along every source decoder direction, at the
        target's position.
    """
    source, target = saes
    read: list[torch.Tensor] = []
    caught: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []

    def splice_source(value, hook):
        return source.reconstruct(value)

    def read_target(value, hook):
        read.append(target.encode(value[0]))

    def catch_gradient(gradient, hook):
        caught.append(gradient[0].detach())

    fwd_hooks: list[Any] = [(target.hook_name, read_target)]
    if _checked(splice) == "source":
        fwd_hooks.append((source.hook_name, splice_source))
    model.zero_grad(set_to_none=True)
    # A backward hook is attached after the splice, so it catches the gradient of the reconstruction.
    with model.hooks(fwd_hooks=fwd_hooks, bwd_hooks=[(source.hook_name, catch_gradient)]):
        model(_ids(tokens)[None], return_type=None)
        for pos, feature in targets:
            (-read[0][pos, feature]).backward(retain_graph=True)
            rows.append(caught.pop()[pos] @ source.W_dec.T)
    model.zero_grad(set_to_none=True)
    return torch.stack(rows).numpy()


def forward_and_encode(
    model: HookedTransformer, saes: Pair, tokens: Sequence[int] | np.ndarray, splice: str = "none"
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target features `[pos, d_sae]` of token ids: forward pass without unembedding, and both encoders."""
    source, target = saes
    seen: dict[str, torch.Tensor] = {}

    def read_source(value, hook):
        seen["source"] = source.encode(value[0])
        return (seen["source"] @ source.W_dec + source.b_dec)[None] if splice == "source" else None

    def read_target(value, hook):
        seen["target"] = target.encode(value[0])

    _checked(splice)
    hooks: list[Any] = [(source.hook_name, read_source), (target.hook_name, read_target)]
    with torch.no_grad():
        model.run_with_hooks(_ids(tokens)[None], stop_at_layer=target.layer + 1, return_type=None, fwd_hooks=hooks)
    return seen["source"].numpy(), seen["target"].numpy()


class _Weights(NamedTuple):
    """What lies between the two hooks, without gradients, heads side by side so that each product is one matrix's."""

    W_out: torch.Tensor  # [d_mlp, d_model], of the source's block
    ln1: tuple[torch.Tensor, torch.Tensor] | None
    W_Q: torch.Tensor  # [d_model, head * d_head]
    b_Q: torch.Tensor
    W_K: torch.Tensor
    b_K: torch.Tensor
    W_V: torch.Tensor
    b_V: torch.Tensor
    W_O: torch.Tensor  # [head * d_head, d_model]
    b_O: torch.Tensor
    ln2: tuple[torch.Tensor, torch.Tensor] | None
    W_in: torch.Tensor  # [d_model, d_mlp]
    b_in: torch.Tensor


@dataclass(frozen=True)
class Given:
    """Everything that is there before the attribution begins.

    Attributes:
        h: `[pos, d_mlp]`, the value that leaves the source hook.
        resid: `[pos, d_model]`, what else the source's block leaves in the residual stream.
        mask: `[pos, pos]`, which keys (columns) a query (row) of the target's layer sees.
        n_heads: Attention heads.
        eps: Of the norms.
        weights: Of what lies between the hooks.
        saes: Both autoencoders.
        target_pos: `[target]`.
        target_feature: `[target]`.
        sources: `[pos, slot]`, ascending active source features of each position, then zeros.
        counts: `[pos]`, how many they are.
    """

    h: torch.Tensor
    resid: torch.Tensor
    mask: torch.Tensor
    n_heads: int
    eps: float
    weights: _Weights
    saes: Pair
    target_pos: torch.Tensor
    target_feature: torch.Tensor
    sources: torch.Tensor
    counts: torch.Tensor


def given_activations(
    model: HookedTransformer,
    saes: Pair,
    tokens: Sequence[int] | np.ndarray,
    targets: Sequence[tuple[int, int]] | np.ndarray,
    splice: str = "none",
) -> Given:
    """Runs the model once and keeps what `careful_loop` and `batched_vjps` begin with."""
    source, target = saes
    block, after = model.blocks[source.layer], model.blocks[target.layer]
    names = {"mid": f"blocks.{source.layer}.hook_resid_mid", "post": source.hook_name}
    seen: dict[str, torch.Tensor] = {}

    def keep(value, hook):
        seen[hook.name] = value[0].clone()

    with torch.no_grad():
        model.run_with_hooks(
            _ids(tokens)[None],
            stop_at_layer=source.layer + 1,
            return_type=None,
            fwd_hooks=[(name, keep) for name in names.values()],
        )
        arriving = seen[names["post"]]
        acts = source.encode(arriving)
        counts = (acts > 0).sum(1)
        order = torch.argsort((acts > 0).to(torch.int8), dim=1, descending=True, stable=True)
        sources = order[:, : max(1, int(counts.max()))]
        sources = torch.where(torch.arange(sources.shape[1]) < counts[:, None], sources, 0)
        pos = torch.arange(len(arriving))
        behind = pos[:, None] - pos
        local = model.cfg.attn_types is not None and model.cfg.attn_types[target.layer] == "local"
        window = model.cfg.window_size if local else None
        pairs = torch.as_tensor(np.asarray(targets, np.int64).reshape(-1, 2))
        return Given(
            h=source.reconstruct(arriving) if _checked(splice) == "source" else arriving,
            resid=seen[names["mid"]] + block.mlp.b_out,
            mask=(behind >= 0) & (behind < (window or len(arriving))),
            n_heads=model.cfg.n_heads,
            eps=model.cfg.eps,
            weights=_between(block, after),
            saes=saes,
            target_pos=pairs[:, 0],
            target_feature=pairs[:, 1],
            sources=sources,
            counts=counts,
        )


def _between(block: Any, after: Any) -> _Weights:
    attn, mlp = after.attn, after.mlp

    def read(W: torch.Tensor) -> torch.Tensor:
        return W.detach().permute(1, 0, 2).flatten(1).contiguous()

    def norm(ln: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (ln.w.detach(), ln.b.detach()) if hasattr(ln, "w") else None  # it has none once it is folded

    return _Weights(
        W_out=block.mlp.W_out.detach(),
        ln1=norm(after.ln1),
        W_Q=read(attn.W_Q),
        b_Q=attn.b_Q.detach().flatten(),
        W_K=read(attn.W_K),
        b_K=attn.b_K.detach().flatten(),
        W_V=read(attn.W_V),
        b_V=attn.b_V.detach().flatten(),
        W_O=attn.W_O.detach().flatten(0, 1).contiguous(),
        b_O=attn.b_O.detach(),
        ln2=norm(after.ln2),
        W_in=mlp.W_in.detach(),
        b_in=mlp.b_in.detach(),
    )


def careful_loop(given: Given) -> Callable[[], np.ndarray]:
    """One backward pass a target, from the target's own position down to the source hook, and none through weights.

    Keys and values are shared by all targets. Behind the attention a target has one position alone, so the other
    positions enter neither its forward nor its backward pass there.

    Returns:
        A function that computes gradients of each target's activation `[target, slot]`, in the order of
        `given.sources` at the target's position; 0 where there is no source.
    """
    source, target = given.saes

    def run() -> np.ndarray:
        out = torch.zeros(len(given.target_pos), given.sources.shape[1])
        h = given.h.clone().requires_grad_()
        shared = _to_keys_and_values(given, h, given.resid)
        targets = zip(given.target_pos.tolist(), given.target_feature.tolist(), strict=True)
        for i, (pos, feature) in enumerate(targets):
            at = torch.tensor(pos)
            value = _target_value(given, *shared, at, given.mask[pos], target.readers[feature], target.b_enc[feature])
            (gradient,) = torch.autograd.grad(value, h, retain_graph=True)
            count = int(given.counts[pos])
            out[i, :count] = source.W_dec[given.sources[pos, :count]] @ gradient[pos]
        return out.numpy()

    return run


def batched_vjps(given: Given, chunk: int = CHUNK) -> Callable[[], np.ndarray]:
    """The same derivatives, `chunk` targets at a time.

    Tuned by hand, the fastest of what was tried: `torch.func`, with each target's way back to the keys and values
    batched over targets (`vmap(grad)`), and all of them pulled through keys, values and norm to the source hook at
    once (`vmap(vjp)`), of positions up to the chunk's last target only: nothing behind it has a gradient.
    `plain_batched_vjps` took about three times as long, because it carries a row for each position all the way.

    Returns:
        As `careful_loop` does.
    """
    source, target = given.saes
    # Sorted, so that a chunk's targets lie near each other.
    order = torch.argsort(given.target_pos, stable=True)
    slots = torch.arange(given.sources.shape[1])

    def value(r0, y, k, v, pos, mask, reader, b_enc):
        return _target_value(given, r0, y, k, v, pos, mask, reader, b_enc)

    to_shared = torch.func.vmap(
        torch.func.grad(value, argnums=(0, 1, 2, 3)), in_dims=(None, None, None, None, 0, 0, 0, 0)
    )

    def run() -> np.ndarray:
        out = torch.zeros(len(order), len(slots))
        with torch.no_grad():
            for rows in order.split(chunk):
                pos, feature = given.target_pos[rows], given.target_feature[rows]
                end = int(pos.max()) + 1
                shared, pull = torch.func.vjp(
                    lambda h, end=end: _to_keys_and_values(given, h, given.resid[:end]), given.h[:end]
                )
                cotangents = to_shared(
                    *shared, pos, given.mask[pos, :end], target.readers[feature], target.b_enc[feature]
                )
                (gradients,) = torch.func.vmap(pull)(cotangents)
                own = gradients[torch.arange(len(rows)), pos]
                along = torch.bmm(source.W_dec[given.sources[pos]], own[:, :, None])[:, :, 0]
                out[rows] = along * (slots < given.counts[pos][:, None])
        return out.numpy()

    return run


def plain_batched_vjps(given: Given, chunk: int = CHUNK) -> Callable[[], np.ndarray]:
    """The same derivatives in the plain way: one graph that holds every position, differentiated in batches.

    Returns:
        As `careful_loop` does.
    """
    source, target = given.saes
    w = given.weights
    slots = torch.arange(given.sources.shape[1])

    def hook_value(h: torch.Tensor) -> torch.Tensor:
        r0, y, k, v = _to_keys_and_values(given, h, given.resid)
        q = torch.addmm(w.b_Q, y, w.W_Q).unflatten(-1, (given.n_heads, -1))
        scores = torch.einsum("qhd,khd->hqk", q, k).masked_fill(~given.mask, -torch.inf)
        z = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        r1 = r0 + z @ w.W_O + w.b_O
        return gelu(_norm(r1, w.ln2, given.eps) @ w.W_in + w.b_in, approximate="tanh")

    def run() -> np.ndarray:
        out = torch.zeros(len(given.target_pos), len(slots))
        h = given.h.clone().requires_grad_()
        arriving = hook_value(h) - target.subtracted
        for rows in torch.arange(len(out)).split(chunk):
            pos, feature = given.target_pos[rows], given.target_feature[rows]
            values = relu((arriving[pos] * target.readers[feature]).sum(1) + target.b_enc[feature])
            each = torch.eye(len(rows))
            (gradients,) = torch.autograd.grad(values, h, each, retain_graph=True, is_grads_batched=True)
            own = gradients[torch.arange(len(rows)), pos]
            along = torch.bmm(source.W_dec[given.sources[pos]], own[:, :, None])[:, :, 0]
            out[rows] = along * (slots < given.counts[pos][:, None])
        return out.numpy()

    return run


def at_active_sources(given: Given, minus: np.ndarray) -> np.ndarray:
    """What `notebook_cell` returned, in the sign, order and shape of the other ways."""
    sources = given.sources[given.target_pos].numpy()
    valid = np.arange(sources.shape[1]) < given.counts[given.target_pos].numpy()[:, None]
    return np.where(valid, -np.take_along_axis(minus, sources, 1), 0)


def _to_keys_and_values(given: Given, h: torch.Tensor, resid: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The residual stream after `h` and its norm `[pos, d_model]`, keys and values `[pos, head, d_head]`."""
    w = given.weights
    r0 = torch.addmm(resid, h, w.W_out)
    y = _norm(r0, w.ln1, given.eps)
    k, v = (torch.addmm(b, y, W).unflatten(-1, (given.n_heads, -1)) for W, b in ((w.W_K, w.b_K), (w.W_V, w.b_V)))
    return r0, y, k, v


def _target_value(
    given: Given,
    r0: torch.Tensor,
    y: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pos: torch.Tensor,
    mask: torch.Tensor,
    reader: torch.Tensor,
    b_enc: torch.Tensor,
) -> torch.Tensor:
    """One target's activation, from what all targets share; `pos` is a tensor so that `vmap` can batch it."""
    w = given.weights
    r0, y = (x[pos[None]][0] for x in (r0, y))
    q = (y @ w.W_Q + w.b_Q).unflatten(-1, (given.n_heads, -1))
    scores = torch.einsum("hd,khd->hk", q, k).masked_fill(~mask, -torch.inf)
    z = torch.einsum("hk,khd->hd", scores.softmax(-1), v).flatten()
    r1 = r0 + z @ w.W_O + w.b_O
    h1 = gelu(_norm(r1, w.ln2, given.eps) @ w.W_in + w.b_in, approximate="tanh")
    return relu((h1 - given.saes[1].subtracted) @ reader + b_enc)


def _norm(x: torch.Tensor, ln: tuple[torch.Tensor, torch.Tensor] | None, eps: float) -> torch.Tensor:
    w, b = ln or (None, None)
    return layer_norm(x, x.shape[-1:], w, b, eps)


def _checked(splice: str) -> str:
    if splice not in SPLICES:
        raise ValueError(f"splice must be one of {', '.join(SPLICES)}, got {splice!r}")
    return splice


def _ids(tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(tokens), dtype=torch.long)
