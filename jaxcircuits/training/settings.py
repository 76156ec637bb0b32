"""What a training run depends on besides its text: numbers only, so that reading them loads no framework."""

import inspect
import re
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

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


class Custom(NamedTuple):
    """What goes with an activation unless something else is asked for."""

    penalty: str
    revive: str


ACTIVATIONS = {
    "relu": Custom("power", "resample"),
    "topk": Custom("none", "auxiliary"),
    "batchtopk": Custom("none", "auxiliary"),
    "jumprelu": Custom("l0", "resample"),
}
"""Activations that can be trained; `training.coding` computes them."""
PENALTIES = ("l1", "sqrt", "hoyer_square", "power", "l0")
"""What the loss may say of sparsity; `training.penalties` computes them."""
REVIVALS = ("resample", "auxiliary", "none")
"""What is done for features that went silent; `training.revival` does it."""


@dataclass(frozen=True)
class SAETraining:
    """Everything an SAE's training depends on, besides the model, the hook point and the text.

    Attributes:
        expansion: Features for each number of the hook's value.
        activation: One of relu, topk, batchtopk (stored as a jumprelu) and jumprelu.
        penalty: What the loss says of sparsity: l1, sqrt, hoyer_square, power, l0 (of a jumprelu), none, or a sum such
            as l1+0.1*hoyer_square; auto is power for relu, l0 for jumprelu and none for topk and batchtopk.
        l0: Features active a token that the sparsity coefficient is steered to; 0 leaves it at `sparsity`.
        k: Features that topk keeps a token, and batchtopk on the mean of a batch; 0 is `l0`, rounded.
        tokens: Tokens seen in all; stories come again where the text is shorter.
        batch_tokens: Tokens a step.
        buffer_tokens: Tokens of many stories that are computed at once and shuffled.
        lr: Peak learning rate of Adam.
        warmup: Share of the steps in which the rate rises.
        decay: Share of the steps, the last ones, in which it falls to zero.
        power: The penalty power is the sum of `feature_acts ** p`; `p` falls from 1 to this.
        sparsity: Coefficient of the penalty, which the steering begins with.
        bandwidth: Width, in units of the value's norm, of the kernel through which a jumprelu's threshold is learnt.
        revive: What is done for features that went silent: resample gives them new weights, auxiliary lets them
            describe what the others leave, none nothing; auto is auxiliary for topk and batchtopk, else resample.
        resamplings: How often, in the first phase, resample does.
        auxiliary: Weight of the auxiliary loss, a share of what the others leave.
        read_weight: Share of the reconstruction error that is measured after the MLP's `W_out`, the one matrix through
            which the model reads an `mlp.hook_post`; the rest is measured at the hook. At other hook points all of it.
        spliced: Share of the steps, the last ones, in which the autoencoder is spliced into the model and the loss
            contains what that does to its predictions.
        spliced_lr: Learning rate in these steps, as a share of what it would be.
        kl_weight: Weight of that, a KL divergence in nats, beside the unexplained share of the variance.
        seed: Initial weights and order of the text.
        text_seed: Order of the text alone; -1 is `seed`.
    """

    expansion: int = 4
    activation: str = "relu"
    penalty: str = "auto"
    l0: float = 26.5
    k: int = 0
    tokens: int = 1_400_000
    batch_tokens: int = 1024
    buffer_tokens: int = 65_536
    lr: float = 1.5e-3
    warmup: float = 0.02
    decay: float = 0.3
    power: float = 0.5
    sparsity: float = 0.03
    bandwidth: float = 0.05
    revive: str = "auto"
    resamplings: int = 6
    auxiliary: float = 0.03125
    read_weight: float = 0.5
    spliced: float = 0.5
    spliced_lr: float = 0.3
    kl_weight: float = 5.0
    seed: int = 0
    text_seed: int = -1

    def __post_init__(self) -> None:
        _check(
            self,
            positive=(
                "expansion",
                "tokens",
                "batch_tokens",
                "buffer_tokens",
                "lr",
                "spliced_lr",
                "sparsity",
                "bandwidth",
            ),
        )
        for name in ("resamplings", "kl_weight", "l0", "k", "auxiliary"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"{name} must not be negative or infinite, got {getattr(self, name)}.")
        for name, known in (("activation", ACTIVATIONS), ("revive", ("auto", *REVIVALS))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if "l0" in self.penalties and self.activation != "jumprelu":
            raise InputError(f"the penalty l0 has a derivative for jumprelu only, got {self.activation}; name another.")
        if self.keeps_k and self.kept < 1:
            raise InputError(f"activation {self.activation} must keep a feature at least; give --k or --l0.")
        if self.text_seed >= 0:
            check_seed(self.text_seed)
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
    def penalties(self) -> dict[str, float]:
        """Coefficient of each penalty, before the common one; empty for none.

        Raises:
            InputError: `penalty` is no such sum.
        """
        text = ACTIVATIONS[self.activation].penalty if self.penalty == "auto" else self.penalty
        coefficients: dict[str, float] = {}
        for term in () if text == "none" else text.split("+"):
            factor, _, name = term.rpartition("*")
            try:
                coefficient = float(factor or 1)
            except ValueError:
                coefficient = inf
            if name not in PENALTIES or name in coefficients or not (isfinite(coefficient) and coefficient > 0):
                known = ", ".join(PENALTIES)
                raise InputError(f"penalty must be none or a sum such as l1+0.1*hoyer_square of {known}; got {text!r}.")
            coefficients[name] = coefficient
        return coefficients

    @property
    def revival(self) -> str:
        """What is done for silent features."""
        return ACTIVATIONS[self.activation].revive if self.revive == "auto" else self.revive

    @property
    def keeps_k(self) -> bool:
        """Whether `kept` decides how many features are on; else the penalty does."""
        return self.activation in ("topk", "batchtopk")

    @property
    def kept(self) -> int:
        """Features that are kept where a number decides."""
        return int(self.k) or round(self.l0)

    @property
    def order(self) -> int:
        """Seed of the text's order."""
        return self.seed if self.text_seed < 0 else self.text_seed

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
