"""Names that people give to features."""

import os
from collections.abc import Mapping, Sequence

from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json

Labels = Mapping[tuple[str, int], str]
"""Names by SAE and number."""


def read_labels(path: str | os.PathLike, saes: Sequence[str]) -> dict[tuple[str, int], str]:
    """Reads `{"SAE": {"880": "colours"}}`; names of features that a graph lacks are taken too.

    Args:
        path: The file.
        saes: Names of the SAEs there are.

    Raises:
        InputError: The file is missing, holds something else, or names another SAE.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from jaxcircuits.graph import read_labels
    >>> file = Path(tempfile.mkdtemp(), "names.json")
    >>> _ = file.write_text('{"blocks.0.mlp.hook_post": {"880": "colours"}}')
    >>> read_labels(file, ["blocks.0.mlp.hook_post"])
    {('blocks.0.mlp.hook_post', 880): 'colours'}
    """
    found = read_json(path, "labels")
    expected = f'{path}: expected {{"SAE": {{"880": "a name"}}}}'
    if not isinstance(found, dict):
        raise InputError(f"{expected}, got a {type(found).__name__}.")
    labels: dict[tuple[str, int], str] = {}
    for sae, names in found.items():
        if sae not in saes:
            raise InputError(f"{path}: there is no SAE {sae!r}; there are {', '.join(saes) or 'none'}.")
        if not isinstance(names, dict):
            raise InputError(f"{expected}, got a {type(names).__name__} for {sae}.")
        for feature, text in names.items():
            if not (feature.isdecimal() and isinstance(text, str)):
                raise InputError(f"{expected}, got {feature!r}: {text!r}.")
            labels[sae, int(feature)] = text
    return labels
