"""Is an autoencoder read as it was trained? Its figures on a little text, and those under other readings.

What an autoencoder's files leave open, or say wrongly, shows in how well it reconstructs: at a wrong hook point, with
`b_dec` subtracted where it was not in training, or without a normalisation that there was, it explains little of the
variance, or less than nothing. So where it explains little, each of these is changed, one at a time.

It is called misread only where another reading leaves at most half (`HALF`) of the variance unexplained that the given
one leaves, and explains at least half (`PLAINLY`). An honest autoencoder that is poor is not: training made its error
small under its own reading, and no other halves it. Nor is one of random weights, which is poor under every reading; of
that there is a doubt, no more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.config import NORMALIZATIONS, ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, hook_width, precedes, side_by_side
from jaxcircuits.sae import SAE
from jaxcircuits.sae.activity import Activity, activity_sums
from jaxcircuits.types import ModelWeights

TOKENS, LENGTH = 512, 128
"""How much text is looked at, in rows of what length."""
WORDS = 8
"""Different tokens that a text has at least, to be one that the tokenizer knows."""
NEAR = 2
"""Layers to either side whose hook points are tried."""
TRUSTED = 0.6
"""Share of the variance explained above which no other reading is tried."""
PLAINLY, HALF = 0.5, 0.5
DENSE = 0.5
"""Share of the features on at a token that is doubted."""


class Reading(NamedTuple):
    """One way to read an autoencoder, and what it is worth on the text.

    Attributes:
        how: In words that follow "explains so much of the variance".
        remedy: What to do where it is the right one.
        l0: Features on a token.
        mse: Squared error a token, summed over the value's numbers.
        variance_explained: 1 - squared error / squared distance from the mean; NaN where the value is constant.
    """

    how: str
    remedy: str
    l0: float
    mse: float
    variance_explained: float


class Checked(NamedTuple):
    """What was found of one autoencoder.

    Attributes:
        given: As it is read.
        better: The best of the other readings, where it is plainly the right one.
        d_sae: How many features it has.
        tokens: How many tokens were looked at.
    """

    given: Reading
    better: Reading | None
    d_sae: int
    tokens: int

    @property
    def misread(self) -> str | None:
        """Why it is plainly misread; `None` where it is not."""
        if self.better is None:
            return None
        ours, theirs = (f"{r.variance_explained:.2f}" for r in (self.given, self.better))
        return f"explains {ours} of the variance {self.given.how}, but {theirs} {self.better.how}: {self.better.remedy}"

    @property
    def doubt(self) -> str | None:
        """What is odd about it though no other reading is better; `None` where nothing is."""
        explained, l0, d_sae = self.given.variance_explained, self.given.l0, self.d_sae
        if self.better is not None:
            return None
        if not explained > 0:
            return (
                f"explains {explained:.2f} of the variance {self.given.how}, less than the mean does, under this "
                "reading and every other that was tried; was it trained on this model, and enough?"
            )
        if l0 == 0 or l0 > DENSE * d_sae:
            return f"has {l0:.1f} of its {d_sae} features on at a token {self.given.how}; is it read as it was trained?"
        return None


def sample_rows(
    tokenize: Callable[[str], Int[np.ndarray, "_pos"]], texts: Iterable[str], n_ctx: int
) -> tuple[Int[np.ndarray, "batch pos"], Bool[np.ndarray, "batch pos"]] | None:
    """Token ids of the beginnings of some texts, padded with 0, and which of them there are, but for each row's first.

    Args:
        tokenize: Token ids of a text, BOS first.
        texts: The texts.
        n_ctx: The model's context.

    Returns:
        `None` where the tokenizer hardly knows the texts' words.
    """
    length = min(n_ctx, LENGTH)
    ids = [tokenize(text)[:length] for text in islice(texts, max(1, TOKENS // length))]
    rows, counted = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), bool)
    for row, tokens in enumerate(ids):
        rows[row, : len(tokens)] = tokens
        counted[row, 1 : len(tokens)] = True
    return (rows, counted) if len(np.unique(rows[counted])) >= WORDS else None


def check_readings(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: Mapping[str, SAE],
    rows: Int[np.ndarray, "batch pos"],
    counted: Bool[np.ndarray, "batch pos"],
) -> dict[str, Checked]:
    """Measures each autoencoder as it is read, and where that is poor, under other readings.

    Args:
        params: The model's weights, processed.
        cfg: The model.
        saes: Autoencoders by name.
        rows: Token ids.
        counted: Which of them count.
    """
    with jax.default_matmul_precision("highest"):
        own = {hook for sae in saes.values() for hook in (sae.cfg.hook_name, sae.cfg.hook_written)}
        values = _values(params, cfg, tuple(sorted(own)), jnp.asarray(rows))
        found = {}
        for name, sae in saes.items():
            given = _measured(f"at {_place(sae)}", "", sae, values, counted)
            found[name] = Checked(given, None, sae.cfg.d_sae, int(counted.sum()))
        poor = {name: saes[name] for name, one in found.items() if not one.given.variance_explained >= TRUSTED}
    for name, sae in poor.items():
        given = found[name].given
        readings = [reading for reading, _ in other_readings(params, cfg, sae, rows, counted)]
        best = max(readings, key=lambda r: np.nan_to_num(r.variance_explained, nan=-np.inf), default=given)
        found[name] = found[name]._replace(better=best if _plainly_right(best, given) else None)
    return found


def other_readings(
    params: ModelWeights,
    cfg: ModelConfig,
    sae: SAE,
    rows: Int[np.ndarray, "batch pos"],
    counted: Bool[np.ndarray, "batch pos"],
) -> list[tuple[Reading, SAE]]:
    """Every other reading of an autoencoder, and the autoencoder that is read so; arguments as of `check_readings`."""
    hooks = {sae.cfg.hook_name, sae.cfg.hook_written} | {hook for way in _hooks(sae, cfg) for hook in way}
    with jax.default_matmul_precision("highest"):
        values = _values(params, cfg, tuple(sorted(hooks)), jnp.asarray(rows))
        others = list(_others(sae, cfg, values, counted))
        return [(_measured(how, remedy, other, values, counted), other) for how, remedy, other in others]


def doubts(found: Mapping[str, Checked]) -> list[str]:
    """A sentence on each autoencoder that is odd.

    Raises:
        InputError: One is plainly misread.
    """
    for name, one in found.items():
        if one.misread is not None:
            raise InputError(f"SAE {name} {one.misread} Without the check (--no-check) it is taken as it is.")
    return [f"SAE {name} {one.doubt}" for name, one in found.items() if one.doubt is not None]


def _plainly_right(other: Reading, given: Reading) -> bool:
    left, left_given = 1 - other.variance_explained, 1 - given.variance_explained
    return other.variance_explained >= PLAINLY and left <= HALF * left_given


def _place(sae: SAE) -> str:
    return sae.cfg.hook_name + (f" → {sae.cfg.hook_written}" if sae.cfg.transcodes else "")


@partial(jax.jit, static_argnames=("cfg", "hooks"))
def _values(
    params: ModelWeights, cfg: ModelConfig, hooks: tuple[str, ...], rows: Int[Array, "batch pos"]
) -> dict[str, Float[Array, "batch pos _width"]]:
    _, acts = forward(params, cfg, rows, taps=hooks, logits_at=None)
    return {hook: side_by_side(hook, value) for hook, value in acts.items()}


_sums = jax.jit(activity_sums)


def _measured(
    how: str, remedy: str, sae: SAE, values: Mapping[str, Array], counted: Bool[np.ndarray, "batch pos"]
) -> Reading:
    read, written = values[sae.cfg.hook_name], values[sae.cfg.hook_written]
    within, n = jnp.asarray(counted), int(counted.sum())
    # Without its hook points' names, so that one program serves all of them.
    cfg = replace(sae.cfg, hook_name="", hook_out="" if sae.cfg.transcodes else None, origin="")
    activity = Activity()
    activity.add(_sums(SAE(sae.weights, cfg), read, written, within, within), n, n)
    figures = activity.figures(sae)
    explained = figures["variance_explained"]
    return Reading(how, remedy, figures["l0"], figures["mse"], np.nan if explained is None else explained)


def _others(
    sae: SAE, cfg: ModelConfig, values: Mapping[str, Array], counted: Bool[np.ndarray, "batch pos"]
) -> Iterator[tuple[str, str, SAE]]:
    """The other readings: how, what to do about it, and the autoencoder that is read so."""
    for hook, hook_out in _hooks(sae, cfg):
        other = SAE(sae.weights, replace(sae.cfg, hook_name=hook, hook_out=hook_out if sae.cfg.transcodes else None))
        option = "--hook-out" if hook == sae.cfg.hook_name else "--hook"
        yield f"at {_place(other)}", f"was it trained there? Name it with {option}, or correct its config.", other
    weights = sae.weights
    if weights.W_enc.shape[0] == weights.W_enc.shape[1]:
        turned = SAE(weights._replace(W_enc=weights.W_enc.T), sae.cfg)
        yield "with W_enc transposed", "transpose it.", turned
    if sae.cfg.transcodes:
        return
    if weights.W_dec.shape[0] == weights.W_dec.shape[1]:
        turned = SAE(weights._replace(W_dec=weights.W_dec.T), sae.cfg)
        yield "with W_dec transposed", "transpose it.", turned
        both = SAE(weights._replace(W_enc=weights.W_enc.T, W_dec=weights.W_dec.T), sae.cfg)
        yield "with W_enc and W_dec transposed", "transpose them.", both
    subtract = not sae.cfg.subtract_b_dec
    words = "where b_dec is subtracted from its input" if subtract else "where b_dec is not subtracted from its input"
    yield words, "correct its config.", SAE(weights, replace(sae.cfg, subtract_b_dec=subtract))
    for normalization in NORMALIZATIONS:
        if normalization != sae.cfg.normalization:
            other = SAE(weights, replace(sae.cfg, normalization=normalization))
            yield f"with the normalisation {normalization} of its input", "correct its config.", other
    x = np.asarray(values[sae.cfg.hook_name], np.float64)[counted]
    scale = float(sae.cfg.d_in**0.5 / max(np.linalg.norm(x, axis=-1).mean(), 1e-9))
    for word, factor, remedy in (
        ("multiplied", scale, "to a mean norm of sqrt(d_in): fold that factor into its weights."),
        ("divided", 1 / scale, "from one of sqrt(d_in): that factor was folded into its weights, and must not be."),
    ):
        scaled = weights._replace(
            W_enc=weights.W_enc * factor, W_dec=weights.W_dec / factor, b_dec=weights.b_dec / factor
        )
        yield f"where its input is {word} by {scale:.3g}", remedy, SAE(scaled, sae.cfg)


def _hooks(sae: SAE, cfg: ModelConfig) -> Iterator[tuple[str, str]]:
    """Pairs of hook points read and written, of the same widths and not far off, of which one is another."""
    own = sae.cfg.hook_name, sae.cfg.hook_written
    if not sae.cfg.transcodes:
        yield from ((hook, hook) for hook in _near(own[0], cfg))
        return
    pairs = [*((hook, own[1]) for hook in _near(own[0], cfg)), *((own[0], hook) for hook in _near(own[1], cfg))]
    yield from (pair for pair in pairs if precedes(cfg, *pair))


def _near(hook: str, cfg: ModelConfig) -> Iterator[str]:
    """Other hook points with a vector of the same width a position, at most `NEAR` layers off."""
    for name in hook_names(cfg):
        if name != hook and abs(_layer(name, cfg) - _layer(hook, cfg)) <= NEAR:
            try:
                same = hook_width(cfg, name) == hook_width(cfg, hook)
            except InputError:  # scores, patterns, scales
                continue
            if same:
                yield name


def _layer(hook: str, cfg: ModelConfig) -> int:
    """The layer of a hook point; those before and after all layers count as the first's and the last's."""
    parts = hook.split(".")
    return int(parts[1]) if parts[0] == "blocks" else 0 if "embed" in parts[0] else cfg.n_layers - 1
