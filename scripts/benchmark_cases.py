"""What the benchmark runs on: random weights of the original's and of GPT-2 small's shape, the shipped bundle, and a
tiny one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import jax
import numpy as np
from benchmark_clock import Edges
from original_shape import original_shape_bundle, random_bundle, random_prompt

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.bundle import Bundle, shipped_bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights


@dataclass(frozen=True)
class Case:
    """A model with its prompts.

    Attributes:
        name: Of the shape.
        bundle: Processed weights and both SAEs.
        unprocessed: The same model's weights for TransformerLens, which processes them itself.
        story: Token ids that targets are attributed in at their own positions.
        longer: Likewise, for all positions.
        corpus: Token ids that throughput is measured on.
        natural: Stories of natural lengths that compilations are counted on; none where that would take too long.
        lengths: Of prompts, for growth.
        numbers: Of prompts, for growth.
        definitions: Edges of `story` (`"same"`) and `longer` (`"all"`) in float64, once they are known.
        deep: Whether layers lie between the SAEs, which has rows of its own (`benchmark_depth`).
    """

    name: str
    bundle: Bundle
    unprocessed: ModelWeights
    story: np.ndarray
    longer: np.ndarray
    corpus: Sequence[np.ndarray]
    natural: Sequence[np.ndarray]
    lengths: Sequence[int]
    numbers: Sequence[int]
    definitions: dict[str, Edges] = field(default_factory=dict)
    deep: bool = False

    def prompt(self, length: int, seed: int = 0) -> np.ndarray:
        """Token ids of some length: random, or pieces of the shipped stories."""
        if self.bundle.tokenizer is None:
            return random_prompt(self.bundle.cfg, length, seed)
        rest = np.concatenate([story[1:] for story in (*self.corpus[seed:], *self.corpus[:seed])])
        return np.concatenate([self.corpus[0][:1], rest[: length - 1]]).astype(np.int32)


def original(quick: bool) -> Case:
    """Random weights of the original's size: 20 source and 2 target features a position."""
    bundle, unprocessed = original_shape_bundle()

    def prompts(*lengths: int) -> list[np.ndarray]:
        return [random_prompt(bundle.cfg, n, seed) for seed, n in enumerate(lengths)]

    story, longer = prompts(16, 24) if quick else prompts(83, 91)
    many = 16 if jax.default_backend() == "cpu" else 128  # enough to fill the device
    corpus = prompts(*[96] * (2 if quick else many))
    return Case("original", bundle, unprocessed, story, longer, corpus, (), *_growth(quick))


def shipped(quick: bool) -> Case:
    """The bundle that comes with the package, and its stories."""
    bundle, unprocessed = load_bundle(), load_bundle(processed=False).params
    stories = [bundle.tokenize(text)[: bundle.cfg.n_ctx] for text in read_corpus(shipped_bundle() / "stories.txt")]
    at = {n: np.argmin([abs(len(story) - n) for story in stories]) for n in (83, 91)}
    story, longer = (stories[i] for i in at.values())
    if quick:
        story, longer = story[:12], longer[:16]
    corpus = stories[:8] if quick else stories
    natural = cut_anywhere(stories, 50 if quick else 1000)
    return Case("shipped", bundle, unprocessed, story, longer, corpus, natural, *_growth(quick))


def tiny(quick: bool) -> Case:
    """A smoke test's size."""
    cfg = ModelConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        d_head=8,
        d_mlp=64,
        d_vocab=100,
        n_ctx=128,
        attention=("global", "local"),
        window=16,
        bos_token_id=0,
    )
    bundle, unprocessed = random_bundle(cfg, 128)
    rng = np.random.default_rng(0)
    corpus = [random_prompt(cfg, 24, seed) for seed in range(8)]
    natural = [random_prompt(cfg, int(n), 100) for n in rng.integers(5, 60, 40 if quick else 1000)]
    story, longer = random_prompt(cfg, 19), random_prompt(cfg, 23)
    return Case("tiny", bundle, unprocessed, story, longer, corpus, natural, (12, 24), (1, 2))


def gpt2(quick: bool) -> Case:
    """GPT-2 small's size with two SAEs of 24,576 features on the residual stream, five layers apart; 64 tokens.

    Random weights, 40 features active at each position in both SAEs (TopK). The vocabulary is 5,000 instead of 50,257,
    because no token is unembedded. Quick, a narrow model of as many layers.
    """
    cfg = ModelConfig(
        n_layers=12,
        d_model=24 if quick else 768,
        n_heads=3 if quick else 12,
        d_head=8 if quick else 64,
        d_mlp=96 if quick else 3072,
        d_vocab=100 if quick else 5000,
        n_ctx=64,
        attention=("global",) * 12,
        window=64,
        attention_scale=(8 if quick else 64) ** -0.5,
        bos_token_id=0,
        family="gpt2",
    )
    k = 4 if quick else 40
    active = {f"blocks.{layer}.hook_resid_pre": float(k) for layer in (4, 9)}
    bundle, unprocessed = random_bundle(cfg, 96 if quick else 24576, active=active)
    # TopK, so that it is as many at each position: a random model's early positions are unlike its later ones.
    saes = {
        hook: SAE(sae.weights._replace(b_enc=0 * sae.weights.b_enc), replace(sae.cfg, activation="topk", k=k))
        for hook, sae in bundle.saes.items()
    }
    bundle = replace(bundle, saes=saes)
    story = random_prompt(cfg, 24 if quick else 64)
    return Case("gpt2", bundle, unprocessed, story, story, (), (), (), (), deep=True)


CASES: dict[str, Callable[[bool], Case]] = {
    "original": original,
    "shipped": shipped,
    "gpt2": gpt2,
    "tiny": tiny,
}
"""By name; each takes whether the run is only a smoke test."""


def cut_anywhere(stories: Sequence[np.ndarray], n: int, seed: int = 0) -> list[np.ndarray]:
    """The stories over and over, from the second time on cut at random places, so that there are more lengths."""
    rng = np.random.default_rng(seed)
    repeated = list(islice(cycle(stories), n))
    return [s if i < len(stories) else s[: rng.integers(2, len(s) + 1)] for i, s in enumerate(repeated)]


def _growth(quick: bool) -> tuple[Sequence[int], Sequence[int]]:
    return ((24, 48), (1, 2)) if quick else ((24, 48, 96, 192), (1, 2, 4, 8, 16))
