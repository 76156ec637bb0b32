"""What a graph is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxcircuits.attribution.problem import DERIVATIVES, GELUS, PRECISIONS
from jaxcircuits.errors import InputError

Token = int | str
"""A token by its id or its text."""


@dataclass(frozen=True)
class GraphSettings:
    """How a prompt's graph is computed; every field is recorded with it.

    Attributes:
        saes: Names of the SAEs whose features are nodes; by default all, if no two write one hook.
        derivative: `"frozen"`: patterns and norm scales held, GELUs linear, so edges add up. `"exact"`: through
            softmax, norms and GELU. `"integrated"`: the mean of the exact one while features rise from zero, and
            tokens' embeddings from the vocabulary's mean, to what they are; all else held.
        gelu: What stands for a GELU where frozen: its `"tangent"`, or the `"secant"`.
        logits: Tokens whose logits are nodes; by default the most probable ones.
        difference: Two tokens; the one node is the logit of the first minus that of the second.
        top_logits: At most that many of the most probable tokens.
        logit_mass: No more of them than reach this probability together.
        position: Where the logits are; negative ones count from the end.
        threshold: Features are nodes where their activation is strictly greater.
        max_features: At most that many features are nodes, those that write the longest vectors.
        include_bos: Whether features at position 0 are nodes where it holds BOS; else they are its `rest`.
        top_k: Keep that many edges of largest absolute weight into each node; the rest is summed in `cut`.
        min_weight: Keep edges whose absolute weight is strictly greater.
        parts: Whether each weight is split into residual stream, value, query and key.
        points: Gauss-Legendre points of the integrated derivative.
        precision: Of matrix products.
    """

    saes: tuple[str, ...] | None = None
    derivative: str = "frozen"
    gelu: str = "tangent"
    logits: Sequence[Token] | None = None
    difference: tuple[Token, Token] | None = None
    top_logits: int = 10
    logit_mass: float = 0.95
    position: int = -1
    threshold: float = 0.0
    max_features: int | None = None
    include_bos: bool = False
    top_k: int | None = None
    min_weight: float = 0.0
    parts: bool = False
    points: int = 32
    precision: str = "highest"

    def __post_init__(self) -> None:
        for name, allowed in (("derivative", DERIVATIVES), ("gelu", GELUS), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("top_logits", "max_features", "top_k", "points"):
            value = getattr(self, name)
            if not (value is None and name in ("max_features", "top_k")) and not (isinstance(value, int) and value > 0):
                raise InputError(f"{name} must be a whole number, at least 1, got {value!r}.")
        if not 0 < self.logit_mass <= 1:
            raise InputError(f"logit_mass must lie above 0, up to 1, got {self.logit_mass}.")
        if not self.threshold >= 0:
            raise InputError(f"threshold must not be negative: nodes are active features, got {self.threshold}.")
        if not self.min_weight >= 0:
            raise InputError(f"min_weight must not be negative, got {self.min_weight}.")
        if self.logits is not None and self.difference is not None:
            raise InputError("give tokens for logits or two for a difference, not both.")
        if self.logits is not None and not len(self.logits):
            raise InputError("logits must name at least one token, got none.")
        if self.difference is not None and len(self.difference) != 2:
            raise InputError(f"a difference is of two tokens, got {len(self.difference)}.")
