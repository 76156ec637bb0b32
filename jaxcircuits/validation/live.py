"""A reference made now: PyTorch and TransformerLens run on a bundle's weights."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxcircuits.attribution.problem import Settings, resolve
from jaxcircuits.bundle import Bundle, shipped_bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.study import NOTEBOOK, Way
from jaxcircuits.validation.recorded import weight_hashes
from jaxcircuits.validation.reference import OTHER_DEVICE, TOLERANCES, Reference, make_reference
from jaxcircuits.validation.torch_model import require_torch, transformer_lens_model
from jaxcircuits.validation.torch_study import torch_quantities

PROMPT = "One day, a little girl named Lily found a red ball."
STORY_TOKENS = 96


def study_inputs(bundle: Bundle, ids: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> dict[str, Any]:
    """`prompt`, `story` and `texts` for `record`, where either was not given: a sentence, and the first story's head.

    Args:
        bundle: For its tokenizer.
        ids: What was given, by `prompt` and `story`.
        texts: What they were read from.
    """
    found, known = dict(ids), dict(texts)
    if "prompt" not in found:
        found["prompt"] = bundle.tokenize(PROMPT)
        known["prompt_text"] = PROMPT
    if "story" not in found:
        found["story"] = bundle.tokenize(next(read_corpus(shipped_bundle() / "stories.txt")))[:STORY_TOKENS]
    return {**found, "texts": known}


def record(
    bundle: Bundle,
    prompt: np.ndarray,
    story: np.ndarray,
    *,
    feature: int | None = None,
    source: str | None = None,
    target: str | None = None,
    texts: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    keep: int | None = None,
    command: str = "",
    way: Way = NOTEBOOK,
    **overrides: Any,
) -> Reference:
    """Runs the notebook's computation in PyTorch + TransformerLens.

    Args:
        bundle: With *unprocessed* weights, loaded from a directory.
        prompt: Token ids of the short text.
        story: Token ids of the longer one.
        feature: The target feature; by default the strongest at the prompt's last position.
        source: Name of the source SAE.
        target: Name of the target SAE.
        texts: `prompt_text` and `story_text`, where the ids came from those.
        dtype: `"float32"`, or `"float64"` for a tight oracle.
        device: PyTorch's word for where to run.
        keep: About how many numbers of each large array are kept; all by default.
        command: What to say that it was made by.
        way: What is spliced in; all but the notebook's are errors planted on purpose.
        overrides: For `transformer_lens_model`: errors planted on purpose.

    Raises:
        InputError: torch is not installed, or the SAEs are not on `mlp.hook_post` of adjacent layers.
    """
    torch, _ = require_torch()
    pair = resolve(bundle, Settings(source=source, target=target))
    if not pair.problem.adjacent_mlps:
        raise InputError(
            "what is recorded compares gradients with weights, so it needs SAEs on mlp.hook_post of adjacent layers, "
            f"got {pair.problem.source_hook} and {pair.problem.target_hook}; name others."
        )
    model = transformer_lens_model(bundle.cfg, bundle.params, dtype=dtype, device=device, **overrides)
    values = torch_quantities(model, pair.source, pair.target, prompt, story, feature, way)
    inputs = {
        "prompt": prompt.tolist(),
        "story": story.tolist(),
        "feature": int(values.pop("feature")),
        "source_sae": pair.source_name,
        "target_sae": pair.target_name,
        **(texts or {}),
    }
    return make_reference(
        values,
        keep,
        inputs=inputs,
        weights=weight_hashes(bundle, [pair.source_name, pair.target_name]),
        dtype=dtype,
        tolerance=TOLERANCES[dtype] if device == "cpu" else OTHER_DEVICE,
        framework={name: version(name) for name in ("torch", "transformer-lens")},
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
        command=command,
    )
