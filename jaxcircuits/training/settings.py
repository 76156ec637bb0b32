"""What a training run depends on besides its text: numbers only, so that reading them loads no framework."""

import inspect
import re
from dataclasses import dataclass
from math import inf

from jaxcircuits.config import ModelConfig, check_seed
from jaxcircuits.corpus import END_OF_TEXT
from jaxcircuits.errors import InputError


@dataclass(frozen=True)
class LMTraining:
    """Everything a language-model run depends on, besides its text.

    Attributes:
        d_model: Width of the residual stream.
        n_layers: Blocks, alternating global and local attention, global first.
        n_heads: Attention heads; `d_head` is `d_model / n_heads`.
        d_vocab: Vocabulary of the byte-level BPE that is trained first.
        n_ctx: Longest row, in tokens.
        window: Keys a local layer's query sees.
        epochs: Passes over the text.
        batch_tokens: Tokens a step, padding included.
        muon_lr: Peak learning rate of Muon, which updates the matrices of the blocks.
        adam_lr: Peak learning rate of Adam, which updates the rest.
        weight_decay: Decoupled weight decay of both.
        warmup: Share of the steps in which the rate rises.
        seed: Initial weights and order of the text.
    """

    d_model: int = 192
    n_layers: int = 2
    n_heads: int = 6
    d_vocab: int = 4096
    n_ctx: int = 512
    window: int = 32
    epochs: float = 6.0
    batch_tokens: int = 2048
    muon_lr: float = 0.01
    adam_lr: float = 0.002
    weight_decay: float = 0.05
    warmup: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, positive=("d_model", "n_layers", "n_heads", "n_ctx", "window", "epochs", "muon_lr", "adam_lr"))
        if not 0 <= self.weight_decay < inf:
            raise InputError(f"weight_decay must not be negative or infinite, got {self.weight_decay}.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a share and must lie in 0..1, below 1, got {self.warmup}.")
        if self.d_model % self.n_heads:
            raise InputError(f"n_heads must divide d_model, got {self.n_heads} and {self.d_model}.")
        if self.d_vocab < 257:
            raise InputError(f"d_vocab must hold 256 bytes and {END_OF_TEXT}, so at least 257, got {self.d_vocab}.")
        if self.batch_tokens < self.n_ctx:
            raise InputError(f"batch_tokens must hold one row of {self.n_ctx} tokens, got {self.batch_tokens}.")

    def model(self) -> ModelConfig:
        """The model this run trains."""
        return ModelConfig(
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_head=self.d_model // self.n_heads,
            d_mlp=4 * self.d_model,
            d_vocab=self.d_vocab,
            n_ctx=self.n_ctx,
            attention=tuple("local" if layer % 2 else "global" for layer in range(self.n_layers)),
            window=self.window,
            bos_token_id=0,
            tied_unembedding=True,
        )


@dataclass(frozen=True)
class SAETraining:
    """Everything an SAE's training depends on, besides the model, the hook point and the text.

    Attributes:
        expansion: Features for each number of the hook's value.
        l0: Features active a token that the sparsity coefficient is steered to.
        tokens: Tokens seen in all; stories come again where the text is shorter.
        batch_tokens: Tokens a step.
        buffer_tokens: Tokens of many stories that are computed at once and shuffled.
        lr: Peak learning rate of Adam.
        warmup: Share of the steps in which the rate rises.
        decay: Share of the steps, the last ones, in which it falls to zero.
        power: The sparsity penalty is the sum of `feature_acts ** p`; `p` falls from 1 to this.
        sparsity: Coefficient of the penalty that the controller begins with.
        resamplings: How often, in the first phase, features that went silent get new weights.
        read_weight: Share of the reconstruction error that is measured after the MLP's `W_out`, the one matrix through
            which the model reads an `mlp.hook_post`; the rest is measured at the hook. At other hook points all of it.
        spliced: Share of the steps, the last ones, in which the autoencoder is spliced into the model and the loss
            contains what that does to its predictions.
        spliced_lr: Learning rate in these steps, as a share of what it would be.
        kl_weight: Weight of that, a KL divergence in nats, beside the unexplained share of the variance.
        seed: Initial weights and order of the text.
    """

    expansion: int = 4
    l0: float = 26.5
    tokens: int = 1_400_000
    batch_tokens: int = 1024
    buffer_tokens: int = 65_536
    lr: float = 1.5e-3
    warmup: float = 0.02
    decay: float = 0.3
    power: float = 0.5
    sparsity: float = 0.03
    resamplings: int = 6
    read_weight: float = 0.5
    spliced: float = 0.5
    spliced_lr: float = 0.3
    kl_weight: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            self,
            positive=("expansion", "tokens", "batch_tokens", "buffer_tokens", "lr", "spliced_lr", "l0", "sparsity"),
        )
        for name in ("resamplings", "kl_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"{name} must not be negative or infinite, got {getattr(self, name)}.")
        if not 0 < self.power <= 1:
            raise InputError(f"power must lie above 0 and not above 1, got {self.power}.")
        if self.buffer_tokens % self.batch_tokens:
            raise InputError(
                f"batch_tokens must divide buffer_tokens, got {self.batch_tokens} and {self.buffer_tokens}."
            )
        if not 0 <= self.warmup <= 1 - self.decay <= 1:
            raise InputError(f"warmup and decay are shares of one run, got {self.warmup} and {self.decay}.")
        for name in ("read_weight", "spliced"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share and must lie in 0..1, got {getattr(self, name)}.")

    @property
    def steps(self) -> int:
        """Steps in all."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def reconstruction_steps(self) -> int:
        """Steps of the first phase."""
        return self.steps - round(self.spliced * self.steps)


def _check(settings: LMTraining | SAETraining, *, positive: tuple[str, ...]) -> None:
    for name in positive:
        if not 0 < getattr(settings, name) < inf:
            raise InputError(f"{name} must be positive and finite, got {getattr(settings, name)}.")
    check_seed(settings.seed)


def meanings(settings: type) -> dict[str, str]:
    """What each setting means, from the `Attributes` of the class's docstring.

    >>> from jaxcircuits.training.settings import LMTraining, meanings
    >>> meanings(LMTraining)["n_ctx"]
    'Longest row, in tokens'
    """
    _, _, attributes = (inspect.getdoc(settings) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", attributes, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).rstrip(".") for name, text in entries}
