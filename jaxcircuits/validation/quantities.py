"""What is compared: the quantities of one setup, computed by this package."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcircuits.attribution.problem import flat
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.model import Edits, forward, hook_names, process_weights
from jaxcircuits.sae import SAE, encode, reconstruct
from jaxcircuits.study import NOTEBOOK, Way, study_arrays
from jaxcircuits.types import ModelWeights, named_weights

GROUPS = ("weights", "model", "saes", "study")
"""In the order in which one builds on the other."""

HOW = {
    "weights": "each processed weight (fold_ln, center_writing_weights, center_unembed, fold_value_biases)",
    "hook": "each hook activation on the story, nothing spliced",
    "logits": "on the story, nothing spliced",
    "token_losses": "cross-entropy of each next token of the story, in nats",
    "loss": "their mean",
    "features.source": "activations of the source SAE on the story, nothing spliced",
    "features.target": "activations of the target SAE on the story, nothing spliced",
    "prompt_source_acts": "activations of the source SAE on the prompt",
    "prompt_target_acts": "activations of the target SAE on the prompt, the source SAE spliced in",
    "prompt_neurons": "value of the source hook at the prompt's last position, before the splice",
    "feature_act": "activation of the target feature at the prompt's last position, spliced",
    "decoder_grads": "gradient of minus that activation, on each decoder direction of the source at that position",
    "cosine_sims": "cos(W_dec[i] W_out, W_in W_enc[:, target feature]) of each source i, on processed weights",
    "active_source_features": "sources above 0.1 at the prompt's last position",
    "top_neurons": "the ten largest of prompt_neurons, in order",
    "nudged_act": "feature_act after the largest neuron moved by -0.05 times its gradient, before the source SAE",
    "prompt_targets": "position and feature of each target above 2 in the prompt, spliced",
    "prompt_sources": "position and feature of each source above 1 in the prompt",
    "prompt_gradients": "gradient of minus each target on each source's decoder row; 0 where the source is later",
    "prompt_hook_gradients": "gradient of minus each target with respect to the reconstruction, at every position",
    "story_pairs": "position, target and source of each same-position pair above 1 in the story, BOS left out",
    "story_gradients": "gradient of minus the target on the source's decoder row, of each pair; nothing spliced",
    "story_cosines": "cosine as in cosine_sims, of each pair",
}
"""What each quantity is; `weights.NAME` and `hook.NAME` are kinds with one for each name."""

SIGNED = ("decoder_grads", "prompt_gradients", "prompt_hook_gradients", "story_gradients")
"""Those in the original's sign."""

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setup:
    """Everything that decides the quantities.

    Attributes:
        cfg: The model.
        stored: Its unprocessed weights.
        saes: Source and target SAE by name.
        prompt: Token ids of the short text.
        story: Token ids of the longer one.
        feature: The target feature of the prompt's quantities.
        way: How the study is made.
        sign: -1: gradients are of minus the activation, as the original's.
        edits: What replaces values of the forward pass; none but for a hypothesis.
    """

    cfg: ModelConfig
    stored: ModelWeights
    saes: dict[str, SAE]
    prompt: np.ndarray
    story: np.ndarray
    feature: int
    way: Way = NOTEBOOK
    sign: int = -1
    edits: Callable[[ModelConfig], Edits] | None = None

    @cached_property
    def params(self) -> ModelWeights:
        """The processed weights."""
        return process_weights(self.stored, self.cfg.processing)

    def compute(self, group: str) -> Values:
        """The quantities of a group, as numpy arrays by name."""
        with jax.default_matmul_precision("highest"):
            found = {"weights": _weights, "model": _model, "saes": _saes, "study": _study}[group](self)
        return {name: np.asarray(value) for name, value in found.items()}


def _weights(setup: Setup) -> dict[str, Array]:
    return {f"weights.{name}": w for name, w in named_weights(setup.params).items()}


def _model(setup: Setup) -> dict[str, Array]:
    story = jnp.asarray(setup.story)
    edits = None if setup.edits is None else setup.edits(setup.cfg)
    logits, acts = forward(setup.params, setup.cfg, story, taps=hook_names(setup.cfg), edits=edits)
    assert logits is not None
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), story[1:, None], axis=-1)[:, 0]
    hooks = {f"hook.{name}": acts[name] for name in hook_names(setup.cfg)}
    return hooks | {"logits": logits, "token_losses": losses, "loss": losses.mean()}


def _saes(setup: Setup) -> dict[str, Array]:
    taps = [sae.cfg.hook_name for sae in setup.saes.values()]
    edits = None if setup.edits is None else setup.edits(setup.cfg)
    _, acts = forward(setup.params, setup.cfg, jnp.asarray(setup.story), taps=taps, edits=edits, logits_at=None)
    ends = zip(("features.source", "features.target"), setup.saes.values(), strict=True)
    return {name: encode(sae, flat(acts[sae.cfg.hook_name])) for name, sae in ends}


def _study(setup: Setup) -> Values:
    source, target = setup.saes.values()
    hooks = [source.cfg.hook_name, target.cfg.hook_name]
    prompt = jnp.asarray(setup.prompt)
    _, before = forward(setup.params, setup.cfg, prompt, taps=hooks[:1], logits_at=None)
    arriving = before[hooks[0]]
    edits = {hooks[0]: reconstruct(source, arriving)} if setup.way.splice in ("source", "both") else None
    _, acts = forward(setup.params, setup.cfg, prompt, taps=hooks[1:], edits=edits, logits_at=None)
    names = list(setup.saes)
    arrays, _, _ = study_arrays(
        Bundle(setup.cfg, setup.params, setup.saes),
        setup.prompt,
        setup.story,
        feature=setup.feature,
        source=names[0],
        target=names[1],
        way=setup.way,
    )
    found = {name: arrays[name] for name in HOW if name in arrays}
    found |= {
        "prompt_source_acts": np.asarray(encode(source, arriving)),
        "prompt_target_acts": np.asarray(encode(target, acts[hooks[1]])),
        "prompt_neurons": np.asarray(arriving[-1]),
    }
    return {name: -setup.sign * value if name in SIGNED else value for name, value in found.items()}
