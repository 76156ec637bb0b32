"""The PyTorch side of the benchmark's `gpt2` shape: batched vector-Jacobian products through several blocks.

The plain way that needs no thought: one graph that holds every position, from the source's residual stream to the
target's, differentiated for `chunk` targets at a time (`is_grads_batched`), and a product with the decoder's rows of
the active sources. No parameter requires gradients. The primal is computed once and shared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm

from jaxcircuits.sae import SAE
from jaxcircuits.types import BlockWeights

CHUNK = 32
"""Targets at a time; on two cores, at GPT-2 small's size, 16 was no faster."""


class _Block(NamedTuple):
    """Processed weights, heads side by side."""

    W_QKV: torch.Tensor  # [d_model, 3 * head * d_head]
    b_QKV: torch.Tensor
    W_O: torch.Tensor  # [head * d_head, d_model]
    b_O: torch.Tensor
    W_in: torch.Tensor
    b_in: torch.Tensor
    W_out: torch.Tensor
    b_out: torch.Tensor


@dataclass(frozen=True)
class Given:
    """What is there before the attribution begins.

    Attributes:
        resid: `[pos, d_model]`, the stream that leaves the source hook.
        blocks: Of what lies between.
        n_heads: Attention heads.
        scale: Of attention scores.
        eps: Of the norms.
        readers: `[d_sae, d_model]`, the target SAE's encoder.
        b_enc: Its bias.
        b_dec: What it subtracts.
        W_dec: `[d_sae, d_model]`, the source SAE's decoder.
        sources: `[pos, slot]`, ascending active source features of each position, then zeros.
        counts: `[pos]`, how many they are.
    """

    resid: torch.Tensor
    blocks: Sequence[_Block]
    n_heads: int
    scale: float
    eps: float
    readers: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor
    W_dec: torch.Tensor
    sources: torch.Tensor
    counts: torch.Tensor


def given(
    resid: np.ndarray,
    blocks: Sequence[BlockWeights],
    n_heads: int,
    scale: float,
    eps: float,
    saes: tuple[SAE, SAE],
    sources: Sequence[np.ndarray],
) -> Given:
    """Weights and activations in PyTorch; `sources` are the active features of each position.

    Raises:
        ValueError: A norm is not folded into what reads it.
    """
    if any(block.ln1 or block.ln2 for block in blocks):
        raise ValueError("expected processed weights, whose norms are folded")
    counts = [len(s) for s in sources]
    padded = np.zeros((len(sources), max(1, *counts)), np.int64)
    for row, features in zip(padded, sources, strict=True):
        row[: len(features)] = features
    source, target = (sae.weights for sae in saes)
    subtracted = target.b_dec if saes[1].cfg.subtract_b_dec else np.zeros_like(target.b_dec)
    return Given(
        resid=_torch(resid),
        blocks=[_block(block) for block in blocks],
        n_heads=n_heads,
        scale=scale,
        eps=eps,
        readers=_torch(np.asarray(target.W_enc).T),
        b_enc=_torch(target.b_enc),
        b_dec=_torch(subtracted),
        W_dec=_torch(source.W_dec),
        sources=torch.from_numpy(padded),
        counts=torch.tensor(counts),
    )


def batched_vjps(given: Given, targets: Sequence[tuple[int, int]], chunk: int = CHUNK) -> Callable[[], np.ndarray]:
    """Gradients of targets' activations along the active sources of every position.

    Returns:
        A function that computes `[target, pos, slot]`, in the order of `given.sources`.
    """
    pairs = torch.as_tensor(np.asarray(targets, np.int64).reshape(-1, 2))

    def run() -> np.ndarray:
        found = []
        x = given.resid.clone().requires_grad_()
        arriving = _after(given, x) - given.b_dec
        for rows in pairs.split(chunk):
            pos, feature = rows.T
            values = torch.relu((arriving[pos] * given.readers[feature]).sum(1) + given.b_enc[feature])
            each = torch.eye(len(rows))
            (gradients,) = torch.autograd.grad(values, x, each, retain_graph=True, is_grads_batched=True)
            by_pos = torch.bmm(gradients.transpose(0, 1), given.W_dec[given.sources].transpose(1, 2))
            found.append(by_pos.transpose(0, 1))
        return torch.cat(found).numpy()

    return run


def _after(given: Given, x: torch.Tensor) -> torch.Tensor:
    """The residual stream behind all blocks."""
    n = len(x)
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    for w in given.blocks:
        q, k, v = torch.addmm(w.b_QKV, _norm(x, given.eps), w.W_QKV).unflatten(-1, (3, given.n_heads, -1)).unbind(1)
        scores = given.scale * torch.einsum("qhd,khd->hqk", q, k)
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        x = x + torch.addmm(w.b_O, torch.einsum("hqk,khd->qhd", pattern, v).flatten(1), w.W_O)
        post = gelu(torch.addmm(w.b_in, _norm(x, given.eps), w.W_in), approximate="tanh")
        x = x + torch.addmm(w.b_out, post, w.W_out)
    return x


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], None, None, eps)


def _block(block: BlockWeights) -> _Block:
    attn, mlp = block.attn, block.mlp

    def read(W) -> np.ndarray:
        return np.asarray(W).transpose(1, 0, 2).reshape(W.shape[1], -1)

    W_O = np.asarray(attn.W_O)
    return _Block(
        W_QKV=_torch(np.concatenate([read(W) for W in (attn.W_Q, attn.W_K, attn.W_V)], 1)),
        b_QKV=_torch(np.concatenate([np.asarray(b).reshape(-1) for b in (attn.b_Q, attn.b_K, attn.b_V)])),
        W_O=_torch(W_O.reshape(-1, W_O.shape[-1])),
        b_O=_torch(attn.b_O),
        W_in=_torch(mlp.W_in),
        b_in=_torch(mlp.b_in),
        W_out=_torch(mlp.W_out),
        b_out=_torch(mlp.b_out),
    )


def _torch(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32, order="C"))
