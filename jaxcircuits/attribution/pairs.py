"""Many SAEs at once: which pairs of a bundle's SAEs are attributed, and all of them in one call."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

from jaxcircuits.attribution.api import Prompt, attribute
from jaxcircuits.attribution.edges import Result
from jaxcircuits.attribution.problem import hooks_between
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.model import hook_names, precedes

PAIRS = ("adjacent", "all")

Pairs = str | Sequence[tuple[str, str]]
"""One of `PAIRS`, or names of source and target SAEs."""


def pairs_of(bundle: Bundle, pairs: Pairs) -> list[tuple[str, str]]:
    """Names of source and target SAEs, in the order in which targets, then sources are computed.

    Args:
        bundle: Model and SAEs.
        pairs: `"all"`: every SAE to every one that comes later. `"adjacent"`: those with no other SAE's hook between
            them. Or the pairs themselves.

    Raises:
        InputError: A word or a name is unknown, a source does not come first, or there is no pair.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.attribution.pairs import pairs_of
    >>> pairs_of(load_bundle(), "adjacent")
    [('blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post')]
    """
    cfg, saes = bundle.cfg, bundle.saes
    order = hook_names(cfg)
    if isinstance(pairs, str):
        if pairs not in PAIRS:
            raise InputError(f"pairs must be {' or '.join(PAIRS)}, or names of SAEs, got {pairs!r}.")
        found = [pair for pair in permutations(saes, 2) if _drives(bundle, *pair)]
        if pairs == "adjacent":
            found = [
                (s, t) for s, t in found if not hooks_between(bundle, saes[s].cfg.hook_written, saes[t].cfg.hook_name)
            ]
    else:
        found = list(dict.fromkeys((s, t) for s, t in pairs))
        for source, target in found:
            for name in (source, target):
                if name not in saes:
                    raise InputError(f"the bundle has no SAE {name!r}; it has {', '.join(saes) or 'none'}.")
            if not _drives(bundle, source, target):
                raise InputError(
                    f"the source SAE must sit before the target SAE, got {source} and {target}; swap them."
                )
    if not found:
        raise InputError("the bundle has no two SAEs of which one comes first; convert more with --sae.")
    return sorted(found, key=lambda pair: [order.index(saes[name].cfg.hook_name) for name in reversed(pair)])


def _drives(bundle: Bundle, source: str, target: str) -> bool:
    return precedes(bundle.cfg, *_hooks(bundle, source, target))


def _hooks(bundle: Bundle, source: str, target: str) -> tuple[str, str]:
    return bundle.saes[source].cfg.hook_written, bundle.saes[target].cfg.hook_name


def attribute_pairs(
    bundle: Bundle, prompts: Prompt | Sequence[Prompt], pairs: Pairs = "adjacent", **settings: Any
) -> dict[tuple[str, str], Result]:
    """`attribute` for many pairs of SAEs, one pair after the other: memory is that of one.

    With `through="direct"` every other SAE's hook in between is held, so that the edges of all pairs together make a
    graph in which no path counts twice.

    Args:
        bundle: Model and SAEs.
        prompts: As for `attribute`.
        pairs: `"adjacent"`, `"all"`, or names of source and target SAEs.
        **settings: Any other field of `Settings`.

    Returns:
        Results by name of source and target SAE.

    Raises:
        InputError: A pair, a prompt or a setting cannot be used.

    >>> from jaxcircuits import attribute_pairs, load_bundle
    >>> results = attribute_pairs(load_bundle(), "The dog ran.", "all", top_k=2)
    >>> [f"{source} to {target}" for source, target in results]
    ['blocks.0.mlp.hook_post to blocks.1.mlp.hook_post']
    """
    for name in ("source", "target", "targets"):
        if name in settings:
            raise InputError(f"{name} is of one pair of SAEs; leave it out, or call attribute.")
    return {
        (source, target): attribute(bundle, prompts, source=source, target=target, **settings)
        for source, target in pairs_of(bundle, pairs)
    }
