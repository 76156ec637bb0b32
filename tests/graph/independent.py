"""Direct edges once more, by PyTorch: a GPT-Neo written out; patterns, scales and features between are detached.

It reads arrays of the package's weight trees and calls none of its mathematics. Unprocessed or processed weights, SAEs
(ReLU or JumpReLU) on `mlp.hook_post` of every layer.
"""

from typing import Any

import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.graph import Graph


def tensors(tree: Any) -> Any:
    """A weight tree's arrays as float64 tensors."""
    torch = pytest.importorskip("torch")
    if tree is None:
        return None
    if hasattr(tree, "_fields"):
        return type(tree)(*(tensors(leaf) for leaf in tree))
    if isinstance(tree, tuple):
        return tuple(tensors(leaf) for leaf in tree)
    return torch.tensor(np.asarray(tree), dtype=torch.float64)


class Detached:
    """One prompt, run with everything held that a frozen direct edge does not pass through."""

    def __init__(self, bundle: Bundle, tokens: np.ndarray) -> None:
        self.torch = torch = pytest.importorskip("torch")
        self.cfg, self.params = bundle.cfg, tensors(bundle.params)
        self.saes = [tensors(sae.weights) for sae in bundle.saes.values()]
        index = torch.tensor(tokens.astype(np.int64))
        self.embedding = self.params.W_E[index].requires_grad_()
        self.position = self.params.W_pos[: len(tokens)].clone().requires_grad_()
        self.pre_acts, self.acts, self.errors, self.constants = [], [], [], []
        resid = self.embedding + self.position
        for layer, block in enumerate(self.params.blocks):
            resid = resid + self.attention(self.norm(resid, block.ln1), block.attn, layer)
            u = self.norm(resid, block.ln2) @ block.mlp.W_in + block.mlp.b_in
            resid = resid + self.autoencoder(self.gelu(u), layer) @ block.mlp.W_out + block.mlp.b_out
        self.logits = self.norm(resid, self.params.ln_final) @ self.params.W_U + self.params.b_U

    def norm(self, x, weights):
        x = x - x.mean(-1, keepdim=True)
        scale = (x.pow(2).mean(-1, keepdim=True) + self.cfg.eps).sqrt().detach()
        return x / scale if weights is None else x / scale * weights.w + weights.b

    def attention(self, x, w, layer):
        torch, n = self.torch, len(x)
        q, k, v = (torch.einsum("pd,hde->hpe", x, W) + b[:, None] for W, b in zip(w[:3], w[4:7], strict=True))
        scores = self.cfg.attention_scale * q @ k.transpose(1, 2)
        behind = torch.arange(n)[:, None] - torch.arange(n)
        window = self.cfg.window if self.cfg.attention[layer] == "local" else n
        pattern = scores.masked_fill((behind < 0) | (behind >= window), -torch.inf).softmax(-1).detach()
        return torch.einsum("hqk,hke,hed->qd", pattern, v, w.W_O) + w.b_O

    def gelu(self, u):
        at = u.detach().clone().requires_grad_()
        value = self.torch.nn.functional.gelu(at, approximate="tanh")
        (slope,) = self.torch.autograd.grad(value.sum(), at)
        constant = (value - slope * at).detach().requires_grad_()
        self.constants.append(constant)
        return slope * u + constant

    def autoencoder(self, h, layer):
        """Later nodes see activations and the error as leaves."""
        w = self.saes[layer]
        pre = (h - w.b_dec) @ w.W_enc + w.b_enc
        on = pre.relu() if w.threshold is None else pre.relu() * (pre > w.threshold)
        acts = on.detach().requires_grad_()
        error = (h - acts @ w.W_dec - w.b_dec).detach().requires_grad_()
        self.pre_acts.append(pre)
        self.acts.append(acts)
        self.errors.append(error)
        return acts @ w.W_dec + w.b_dec + error

    def edges(self, value: Any) -> dict[str, np.ndarray]:
        """Gradient times value of every leaf, the widths of embeddings, errors and constants summed."""
        leaves = [self.embedding, self.position, *self.acts, *self.errors, *self.constants]
        found = self.torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        products = [(g * leaf if g is not None else 0 * leaf).detach() for g, leaf in zip(found, leaves, strict=True)]
        n = len(self.acts)
        return {
            "token": products[0].sum(-1).numpy(),
            "position": products[1].sum(-1).numpy(),
            "feature": [p.numpy() for p in products[2 : 2 + n]],  # pyright: ignore
            "error": [p.sum(-1).numpy() for p in products[2 + n : 2 + 2 * n]],  # pyright: ignore
            "gelu": [p.sum(-1).numpy() for p in products[2 + 2 * n :]],  # pyright: ignore
        }


def differences(graph: Graph, other: Detached, end: int) -> np.ndarray:
    """What the graph's edges into a node have more than PyTorch's, as shares of the largest of them."""
    nodes, found = graph.nodes, []
    into = np.zeros(len(nodes))
    into[graph.source[graph.target == end]] = graph.weight[graph.target == end]
    pos, feature = nodes.pos[end], nodes.feature[end]
    logit = nodes.kind[end] == "logit"
    value = other.logits[pos] if logit else other.pre_acts[nodes.sae[end]][pos]
    expected = other.edges(value[feature] - value.mean() if logit else value[feature])
    for kind in ("token", "position", "feature", "error", "gelu"):
        which = np.flatnonzero(nodes.are(kind))
        group = nodes.layer[which] if kind == "gelu" else nodes.sae[which]
        for number in np.unique(group):
            mine = which[group == number]
            theirs = expected[kind][number] if number >= 0 else expected[kind]
            at = (nodes.pos[mine], nodes.feature[mine]) if kind == "feature" else nodes.pos[mine]
            found.append(into[mine] - theirs[at])
    return np.concatenate(found) / np.abs(into).max()
