"""Names that people give to features."""

import os

from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json
from jaxcircuits.graph import Graph


def read_labels(path: str | os.PathLike, graph: Graph) -> dict[tuple[str, int], str]:
    """Reads `{"SAE": {"880": "colours"}}`; names of features that the graph lacks are taken too.

    Raises:
        InputError: The file is missing, holds something else, or names an SAE that the graph lacks.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph
    >>> from jaxcircuits.report.explorer.labels import read_labels
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> file = Path(tempfile.mkdtemp(), "names.json")
    >>> _ = file.write_text('{"blocks.0.mlp.hook_post": {"880": "colours"}}')
    >>> read_labels(file, graph)
    {('blocks.0.mlp.hook_post', 880): 'colours'}
    """
    found = read_json(path, "labels")
    expected = f'{path}: expected {{"SAE": {{"880": "a name"}}}}'
    if not isinstance(found, dict):
        raise InputError(f"{expected}, got a {type(found).__name__}.")
    labels: dict[tuple[str, int], str] = {}
    for sae, names in found.items():
        if sae not in graph.saes:
            raise InputError(f"{path}: the graph has no SAE {sae!r}; it has {', '.join(graph.saes)}.")
        if not isinstance(names, dict):
            raise InputError(f"{expected}, got a {type(names).__name__} for {sae}.")
        for feature, text in names.items():
            if not (feature.isdecimal() and isinstance(text, str)):
                raise InputError(f"{expected}, got {feature!r}: {text!r}.")
            labels[sae, int(feature)] = text
    return labels
