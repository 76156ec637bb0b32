"""The same quantities by PyTorch and TransformerLens, computed the original notebook's way."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcircuits.sae import SAE
from jaxcircuits.study import (
    LISTED_SOURCE,
    NOTEBOOK,
    NUDGE,
    PROMPT_SOURCE,
    PROMPT_TARGET,
    STORY_SOURCE,
    STORY_TARGET,
    Way,
)
from jaxcircuits.validation.quantities import Values
from jaxcircuits.validation.torch_model import (
    TorchSAE,
    feature_acts,
    hook_gradients,
    hook_value,
    require_torch,
    run_with_cache,
    splice_hooks,
)


def torch_quantities(
    model: Any,
    source: SAE,
    target: SAE,
    prompt: np.ndarray,
    story: np.ndarray,
    feature: int | None = None,
    way: Way = NOTEBOOK,
) -> Values:
    """Every quantity of `quantities.HOW`.

    Args:
        model: A TransformerLens model of processed weights.
        source: The source SAE, on `mlp.hook_post`.
        target: The target SAE, on the next layer's.
        prompt: Token ids of the short text.
        story: Token ids of the longer one.
        feature: The target feature; by default the strongest at the prompt's last position.
        way: What is spliced in; all but the notebook's are errors planted on purpose.
    """
    torch, _ = require_torch()
    weights = {
        f"weights.{name}": w.detach().cpu().numpy()
        for name, w in model.state_dict().items()
        if not name.endswith(("attn.mask", "attn.IGNORE"))
    }
    logits, cache = run_with_cache(model, story)
    losses = -torch.tensor(logits).log_softmax(-1).numpy()[range(len(story) - 1), story[1:]]
    # Some versions name the logits as hooks of the unembedding.
    hooks = {f"hook.{name}": value for name, value in cache.items() if not name.startswith("unembed.")}
    return {
        **weights,
        **hooks,
        "logits": logits,
        "token_losses": losses,
        "loss": losses.mean(),
        "features.source": feature_acts(model, story, source),
        "features.target": feature_acts(model, story, target),
        **notebook(model, source, target, prompt, story, feature, way),
    }


def notebook(
    model: Any,
    source: SAE,
    target: SAE,
    prompt: np.ndarray,
    story: np.ndarray,
    feature: int | None = None,
    way: Way = NOTEBOOK,
) -> Values:
    """The notebook's cells: one backward pass a target, of *minus* its activation. Arguments as above."""
    torch, _ = require_torch()
    both, last = [source, target], len(prompt) - 1
    spliced = both if way.splice == "both" else []
    acts, source_acts = feature_acts(model, prompt, target, spliced=spliced), feature_acts(model, prompt, source)
    feature = int(acts[last].argmax()) if feature is None else feature
    (at_hook,) = -hook_gradients(model, prompt, source, target, [(last, feature)], way.splice)
    W_dec = np.asarray(source.weights.W_dec).astype(at_hook.dtype)
    neurons = hook_value(model, prompt, source.cfg.hook_name)[last]
    out: Values = {
        "feature": np.array(feature),
        "prompt_source_acts": source_acts,
        "prompt_target_acts": acts,
        "prompt_neurons": neurons,
        "feature_act": acts[last, feature],
        "decoder_grads": W_dec @ at_hook[last],
        "active_source_features": np.flatnonzero(source_acts[last] > LISTED_SOURCE),
        "top_neurons": np.argsort(-neurons, kind="stable")[:10],
        "nudged_act": _nudged(model, both, spliced, prompt, feature, int(neurons.argmax()), at_hook[last]),
    }

    targets, sources = np.argwhere(acts > PROMPT_TARGET), np.argwhere(source_acts > PROMPT_SOURCE)
    every = -hook_gradients(model, prompt, source, target, targets, way.splice)
    along = np.zeros((len(targets), len(sources)), every.dtype)
    for i, (pos, _) in enumerate(targets):
        for j, (source_pos, s) in enumerate(sources):
            along[i, j] = every[i, source_pos] @ W_dec[s] if source_pos <= pos else 0
    out |= {
        "prompt_targets": targets,
        "prompt_sources": sources,
        "prompt_hook_gradients": every,
        "prompt_gradients": along,
    }

    writer, reader = (TorchSAE(sae, str(at_hook.dtype), str(model.cfg.device)) for sae in both)
    layer = int(source.cfg.hook_name.split(".")[1])
    writes = writer.W_dec @ model.blocks[layer].mlp.W_out
    reads = model.blocks[layer + 1].mlp.W_in @ reader.W_enc
    normalize = torch.nn.functional.normalize
    writes, reads = normalize(writes, dim=1), normalize(reads, dim=0)
    out["cosine_sims"] = (writes @ reads[:, feature]).cpu().numpy()

    at_story = both if way.story_splice == "both" else []
    acts, source_acts = feature_acts(model, story, target, spliced=at_story), feature_acts(model, story, source)
    targets = np.argwhere((acts > STORY_TARGET) & (np.arange(len(story))[:, None] > 0))
    every = -hook_gradients(model, story, source, target, targets, way.story_splice)
    sources_of = [np.flatnonzero(source_acts[pos] > STORY_SOURCE) for pos, _ in targets]
    pairs = [(*target, s) for target, listed in zip(targets, sources_of, strict=True) for s in listed]
    pairs = np.array(pairs, np.int64).reshape(-1, 3)
    gradients = [W_dec[listed] @ g[t[0]] for t, listed, g in zip(targets, sources_of, every, strict=True)]
    cosines = (writes[pairs[:, 2]] * reads.T[pairs[:, 1]]).sum(-1)
    return out | {
        "story_pairs": pairs,
        "story_gradients": np.concatenate([*gradients, np.zeros(0, every.dtype)]),
        "story_cosines": cosines.cpu().numpy(),
    }


def _nudged(
    model: Any,
    both: Sequence[SAE],
    spliced: Sequence[SAE],
    prompt: np.ndarray,
    feature: int,
    neuron: int,
    gradient: np.ndarray,
) -> np.ndarray:
    """The target's activation at the last position after the neuron moved against the gradient, before the splice."""
    torch, _ = require_torch()
    in_torch = {sae.cfg.hook_name: TorchSAE(sae, str(gradient.dtype), str(model.cfg.device)) for sae in both}
    (source, _), (target, reader) = in_torch.items()
    seen: list[Any] = []

    def nudge(value: Any, hook: Any) -> Any:
        value = value.clone()
        value[0, -1, neuron] -= NUDGE * float(gradient[neuron])
        return value

    def read(value: Any, hook: Any) -> None:
        seen.append(reader.encode(value[0, -1])[feature].cpu().numpy())

    hooks = [(source, nudge), (target, read), *splice_hooks([in_torch[sae.cfg.hook_name] for sae in spliced])]
    ids = torch.tensor(np.asarray(prompt), dtype=torch.long, device=model.cfg.device)
    model.run_with_hooks(ids[None], return_type=None, fwd_hooks=hooks)
    return seen[0]
