"""`attribute`: some prompts, all in memory. A corpus goes through the command line, which streams to a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcircuits.attribution.edges import Result, to_arrow
from jaxcircuits.attribution.engine import Engine
from jaxcircuits.attribution.problem import Settings
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError

Prompt = str | Sequence[int] | np.ndarray
"""A text, which gets BOS, or token ids, which are taken as they are."""


def tokenized(bundle: Bundle, prompt: Prompt) -> np.ndarray:
    """Token ids of a prompt.

    Raises:
        InputError: It is empty or holds something that is not a token id.
    """
    if isinstance(prompt, str):
        return bundle.tokenize(prompt)
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise InputError(f"token ids must be a list of whole numbers, at least one, got {prompt!r:.80}.")
    return ids.astype(np.int32)


def attribute(
    bundle: Bundle,
    prompts: Prompt | Sequence[Prompt],
    *,
    source: str | None = None,
    target: str | None = None,
    targets: Sequence[tuple[int, int]] | None = None,
    **settings: Any,
) -> Result:
    """Which source features drive which target features, exactly, for every active pair of the prompts.

    Args:
        bundle: Model and SAEs.
        prompts: One prompt or several; a text gets BOS, token ids are taken as they are.
        source: Name of the source SAE; by default the one on the earliest hook point.
        target: Name of the target SAE; by default the one on the latest.
        targets: `(position, feature)` to attribute in each prompt; by default every active one.
        **settings: Any other field of `Settings`: `positions`, `method`, `derivative`, `splice`,
            `source_threshold`, `target_threshold`, `include_bos`, `top_k` and so on.

    Returns:
        Edges, targets and prompts as Arrow tables. `gradient` is in units of target activation per unit of source
        activation, `attribution` in units of target activation.

    Raises:
        InputError: A prompt or a setting cannot be used; the sentence says why.

    >>> from jaxcircuits import attribute, load_bundle
    >>> result = attribute(load_bundle(), "The dog ran to the park.", positions="all", top_k=3)
    >>> result.edges.column_names[:4]
    ['prompt', 'target_pos', 'target_feature', 'source_pos']
    >>> edges = result.to_pandas()
    >>> bool((edges.source_pos <= edges.target_pos).all())
    True
    >>> bool((edges.attribution == edges.gradient * edges.source_act).all())
    True
    """
    unknown = sorted(set(settings) - set(Settings.__dataclass_fields__))
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; there are {', '.join(Settings.__dataclass_fields__)}.")
    engine = Engine(bundle, Settings(source=source, target=target, **settings))
    listed = [prompts] if _is_one(prompts) else list(prompts)
    if not listed:
        raise InputError("no prompt was given; expected at least one.")
    ids = [tokenized(bundle, prompt) for prompt in listed]  # pyright: ignore[reportArgumentType]
    edges, found = engine.run(list(enumerate(ids)), targets)
    texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
    return Result(
        to_arrow(edges, engine.edge_columns),
        to_arrow(found, engine.target_columns),
        prompt_table(bundle, range(len(ids)), texts, ids),
        engine.description(),
    )


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    if isinstance(prompts, str):
        return True
    return len(prompts) > 0 and np.ndim(prompts[0]) == 0 and not isinstance(prompts[0], str)


def prompt_table(bundle: Bundle, rows: Sequence[int], texts: Sequence[str | None], ids: Sequence[np.ndarray]):
    """The prompts as an Arrow table: number, text (null for token ids), token ids, each token as text."""
    import pyarrow as pa

    return pa.table(
        {
            "prompt": pa.array(rows, pa.int32()),
            "text": pa.array(texts, pa.string()),
            "tokens": pa.array([t.tolist() for t in ids], pa.list_(pa.int32())),
            "token_strings": pa.array([bundle.token_strings(t) for t in ids], pa.list_(pa.string())),
        }
    )
