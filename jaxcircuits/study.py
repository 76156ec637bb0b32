"""The original notebook, every cell of it, on any bundle: in its sign, under its thresholds.

Source: the PyTorch notebook on TinyStories-2Layers-33M. It differentiates *minus* an activation; arrays named
`*_grads` and `*_gradients` here carry that sign, everything printed about agreement the derivative's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.engine import Engine
from jaxcircuits.attribution.problem import Problem, Settings, resolve, source_side, spliced, target_side
from jaxcircuits.attribution.reference import hook_gradients
from jaxcircuits.attribution.tables import Tables
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import check_seed
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE, encode, reconstruct
from jaxcircuits.statistics import Agreement, agreement

NUDGE = 0.05
LISTED_SOURCE = 0.1  # thresholds of the notebook's cells, all strict
PROMPT_TARGET, PROMPT_SOURCE = 2.0, 1.0
STORY_TARGET, STORY_SOURCE = 1.0, 1.0
CHUNK = 16


@dataclass(frozen=True)
class Way:
    """How the numbers are made; the defaults are the notebook's, all else is what a port may get wrong.

    Attributes:
        splice: What is spliced in while the prompt is read.
        story_splice: What is while the story is.
        before_splice: Whether derivatives are with respect to the value that arrives at the source hook, through its
            SAE, in place of the reconstruction that leaves it.
    """

    splice: str = "both"
    story_splice: str = "none"
    before_splice: bool = False


NOTEBOOK = Way()


@dataclass(frozen=True)
class Study:
    """Every quantity of the notebook.

    Attributes:
        arrays: What goes to `study.npz`, by the contract's names.
        facts: Numbers and words about it.
        agreements: Whether weights predict derivatives, by the set of pairs that is asked about.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    agreements: dict[str, Agreement]

    @property
    def warnings(self) -> list[str]:
        """What is empty or zero because nothing was active, a sentence each."""
        found = []
        if not self.facts["feature_act"] > 0:
            found.append(
                f"target feature {self.facts['feature']} is off at the prompt's last position, so its derivatives "
                "are zero; name another with --feature."
            )
        for name, what in (
            ("active_source_features", "source feature is above 0.1 at the prompt's last position"),
            ("prompt_targets", "target of the prompt is above 2"),
            ("prompt_sources", "source of the prompt is above 1"),
            ("story_pairs", "pair of the story is active"),
        ):
            if not self.facts[name]:
                found.append(f"no {what}, so {name} is empty; use other text.")
        return found


@partial(jax.jit, static_argnames="problem")
def _activations(
    params: Any,
    source: SAE,
    target: SAE,
    tokens: Int[Array, "pos"],
    nudge: Float[Array, "pos d_in"],
    *,
    problem: Problem,
) -> tuple[Array, Array, Array, Array]:
    """The source hook before and after the splice, and both SAEs' activations; `nudge` is added before the splice."""
    arriving, _ = source_side(problem, params, source, tokens)
    moved = arriving + nudge
    h = spliced(problem, source, moved, moved, tokens)
    at_target, _ = target_side(problem, params, h, tokens)
    return arriving, h, encode(source, moved), encode(target, at_target)


def run_study(
    bundle: Bundle,
    prompt: Int[np.ndarray, "pos"],
    story: Int[np.ndarray, "story_pos"],
    *,
    feature: int | None = None,
    source: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> Study:
    """Computes every quantity of the notebook.

    Args:
        bundle: Model and SAEs; the two must sit on `mlp.hook_post` of adjacent layers.
        prompt: Token ids, BOS included where the model was trained with one.
        story: Token ids of the longer text of the last cells.
        feature: The target feature; by default the strongest at the prompt's last position.
        source: Name of the source SAE.
        target: Name of the target SAE.
        seed: Of the bootstrap intervals.

    Raises:
        InputError: The SAEs are not on adjacent MLPs, the feature does not exist, or the seed is out of range.
    """
    check_seed(seed)
    arrays, facts, prompt_cosines = study_arrays(bundle, prompt, story, feature=feature, source=source, target=target)
    targets, sources, active = (arrays[n] for n in ("prompt_targets", "prompt_sources", "active_source_features"))
    cosines, along_decoder, pairs = arrays["cosine_sims"], -arrays["decoder_grads"], -arrays["prompt_gradients"]
    same = targets[:, None, 0] == sources[None, :, 0]
    check = partial(agreement, seed=seed)
    agreements = {
        "all source features": check(cosines, along_decoder),
        "active source features": check(cosines[active], along_decoder[active]),
        "prompt pairs, same position": check(
            prompt_cosines[same], pairs[same], clusters=np.broadcast_to(sources[None, :, 0], same.shape)[same]
        ),
        "story pairs": check(arrays["story_cosines"], -arrays["story_gradients"], clusters=arrays["story_pairs"][:, 0]),
    }
    return Study(arrays, facts, agreements)


def study_arrays(
    bundle: Bundle,
    prompt: Int[np.ndarray, "pos"],
    story: Int[np.ndarray, "story_pos"],
    *,
    feature: int | None = None,
    source: str | None = None,
    target: str | None = None,
    way: Way = NOTEBOOK,
) -> tuple[dict[str, np.ndarray], dict[str, Any], Float[np.ndarray, "target source"]]:
    """`arrays` and `facts` of a `Study`, and the cosine of each prompt target with each source, whatever its position.

    Arguments and errors are those of `run_study`; a `way` other than the default is not the notebook's.
    """
    both = resolve(bundle, Settings(source=source, target=target, splice=way.splice))
    problem = both.problem
    if not problem.adjacent_mlps or both.source.cfg.transcodes:
        raise InputError(
            "the study compares gradients with weights, so it needs SAEs on mlp.hook_post of adjacent layers, got "
            f"{problem.source_hook} and {problem.target_hook}; name others with --source-sae and --target-sae."
        )
    tables = Engine(bundle, Settings(source=source, target=target)).tables
    with jax.default_matmul_precision("highest"):
        tokens = jnp.asarray(prompt)
        run = partial(_activations, bundle.params, both.source, both.target, tokens, problem=problem)
        arriving, h, source_acts, target_acts = run(
            jnp.zeros((len(prompt), both.source.cfg.d_in), tables.directions.dtype)
        )
        source_acts, target_acts = np.asarray(source_acts), np.asarray(target_acts)
        last = len(prompt) - 1
        if feature is None:
            feature = int(target_acts[last].argmax())
        if not 0 <= feature < both.target.cfg.d_sae:
            raise InputError(f"the target SAE has features 0..{both.target.cfg.d_sae - 1}, got {feature}.")

        at_splice = partial(_gradients, bundle, both.target, problem, tokens, h)
        gradients = partial(_through_source, both.source, arriving, at_splice) if way.before_splice else at_splice
        derivative = gradients(np.array([[last, feature]]))[0]  # of the activation itself: [pos, d_in]
        along_decoder = np.asarray(tables.directions @ derivative[last])
        cosines = _cosines(tables, feature)

        neurons = np.argsort(-np.asarray(arriving)[last], kind="stable")
        nudge = np.zeros(arriving.shape, arriving.dtype)
        nudge[last, neurons[0]] = NUDGE * derivative[last, neurons[0]]
        nudged_act = float(run(jnp.asarray(nudge))[3][last, feature])

        targets = np.argwhere(target_acts > PROMPT_TARGET)
        sources = np.argwhere(source_acts > PROMPT_SOURCE)
        at_hook = gradients(targets)
        pairs = _along_sources(at_hook, np.asarray(tables.directions), targets, sources)
        story_edges = _story(bundle, story, source, target, way.story_splice)

    active = np.flatnonzero(source_acts[last] > LISTED_SOURCE)
    arrays = {
        "prompt": prompt,
        "story": story,
        "feature": np.array(feature),
        "feature_act": np.array(target_acts[last, feature]),
        "decoder_grads": -along_decoder,
        "cosine_sims": cosines,
        "active_source_features": active,
        "top_neurons": neurons[:10],
        "nudged_act": np.array(nudged_act, target_acts.dtype),
        "prompt_targets": targets,
        "prompt_sources": sources,
        "prompt_gradients": -pairs,
        "prompt_hook_gradients": -at_hook,
        "story_pairs": np.stack([story_edges[n] for n in ("target_pos", "target_feature", "source_feature")], axis=1),
        "story_gradients": -story_edges["gradient"],
        "story_cosines": story_edges["cosine_similarity"],
    }
    prompt_cosines = np.zeros((len(targets), len(sources)))
    for i, (_, f) in enumerate(targets):
        prompt_cosines[i] = _cosines(tables, int(f))[sources[:, 1]]
    facts = {
        "source_sae": both.source_name,
        "target_sae": both.target_name,
        "prompt_tokens": bundle.token_strings(prompt),
        "feature": feature,
        "feature_act": float(target_acts[last, feature]),
        "nudged_act": nudged_act,
        "nudge_neuron": int(neurons[0]),
        "active_source_features": len(active),
        "prompt_targets": len(targets),
        "prompt_sources": len(sources),
        "story_pairs": len(arrays["story_pairs"]),
    }
    return arrays, facts, prompt_cosines


def _gradients(
    bundle: Bundle,
    target: SAE,
    problem: Problem,
    tokens: Int[Array, "pos"],
    h: Float[Array, "pos d_in"],
    targets: Int[np.ndarray, "target 2"],
) -> Float[np.ndarray, "target pos d_in"]:
    """Derivatives of targets at the source hook, after its splice."""
    found = np.zeros((len(targets), *h.shape), h.dtype)
    for start in range(0, len(targets), CHUNK):
        part = np.zeros((CHUNK, 2), np.int32)
        n = len(targets[start : start + CHUNK])
        part[:n] = targets[start : start + CHUNK]
        at, features = jnp.asarray(part.T)
        found[start : start + n] = hook_gradients(bundle.params, target, tokens, h, at, features, problem=problem)[:n]
    return found


def _through_source(
    source: SAE, arriving: Float[Array, "pos d_in"], gradients: Callable[[np.ndarray], np.ndarray], targets: np.ndarray
) -> Float[np.ndarray, "target pos d_in"]:
    """Derivatives with respect to what the source SAE reconstructs, in place of its reconstruction."""
    _, pull = jax.vjp(partial(reconstruct, source), arriving)
    found = [np.asarray(pull(jnp.asarray(g))[0]) for g in gradients(targets)]
    return np.stack(found) if found else np.zeros((0, *arriving.shape), arriving.dtype)


def _along_sources(
    at_hook: Float[np.ndarray, "target pos d_in"],
    directions: Float[np.ndarray, "d_sae d_in"],
    targets: Int[np.ndarray, "target 2"],
    sources: Int[np.ndarray, "source 2"],
) -> Float[np.ndarray, "target source"]:
    """Derivatives along listed sources, each at its own position; 0 where the source comes later."""
    found = np.zeros((len(targets), len(sources)), at_hook.dtype)
    for pos in np.unique(sources[:, 0]):
        at = sources[:, 0] == pos
        found[:, at] = at_hook[:, pos] @ directions[sources[at, 1]].T
    return np.where(sources[None, :, 0] <= targets[:, None, 0], found, 0)


def _cosines(tables: Tables, feature: int) -> Float[np.ndarray, "d_sae"]:
    """Cosine of every source's write with one target's read, on processed weights."""
    products = tables.products
    assert products is not None
    norms = products.writes_norm * products.reads_norm[feature]
    return np.asarray(tables.writes @ products.reads[feature]) / np.where(norms > 0, norms, 1)


def _story(
    bundle: Bundle, story: np.ndarray, source: str | None, target: str | None, splice: str
) -> dict[str, np.ndarray]:
    """Same-position edges of the story, BOS left out."""
    settings = Settings(
        source=source,
        target=target,
        source_threshold=STORY_SOURCE,
        target_threshold=STORY_TARGET,
        method="reference",
        splice=splice,
    )
    return Engine(bundle, settings).run([(0, story)])[0]
