"""Rotary positions as Hugging Face's configs describe them: under `rope_parameters`, and under older names."""

from collections.abc import Mapping
from typing import Any

from jaxcircuits.errors import InputError

Numbers = Mapping[str, tuple[str, float]]
"""By the names of `rope_parameters`, which is where transformers 5 writes them: the older names, and the defaults."""


def rotary_fields(numbers: Numbers) -> set[str]:
    """The config fields that `rotary_numbers` reads."""
    return {"rope_parameters", "rope_scaling", *numbers, *(old for old, _ in numbers.values())}


def rotary_numbers(fields: Mapping[str, Any], numbers: Numbers, where: str) -> tuple[float, ...]:
    """The numbers, in their order.

    Raises:
        InputError: Positions are turned otherwise than by default, or a number stands there twice and differs.
    """
    if fields.get("rope_scaling") is not None:
        raise InputError(f"{where}: rope_scaling is not supported; expected null, got {fields['rope_scaling']!r}.")
    nested = fields.get("rope_parameters") or {}
    if not isinstance(nested, dict) or set(nested) - {"rope_type", *numbers}:
        raise InputError(
            f"{where}: rope_parameters may hold rope_type, {' and '.join(numbers)}, got {nested!r}; "
            "other rotary positions are not supported."
        )
    if nested.get("rope_type", "default") != "default":
        raise InputError(f"{where}: rope_type must be 'default', got {nested['rope_type']!r}.")
    return tuple(_number(fields, nested, name, *of, where) for name, of in numbers.items())


def _number(
    fields: Mapping[str, Any], nested: Mapping[str, Any], name: str, old: str, default: float, where: str
) -> float:
    """A number under whichever of its names it stands; all that are there must agree."""
    given = {f"rope_parameters.{name}": nested.get(name), old: fields.get(old)}
    given = {spelling: value for spelling, value in given.items() if value is not None}
    first, found = next(iter(given.items()), (f"{old}, which is not given,", default))
    # transformers does not read this one for GPT-NeoX, though some of its versions wrote it.
    given |= {} if fields.get(name) is None else {name: fields[name]}
    for spelling, value in given.items():
        if type(value) not in (int, float):
            raise InputError(f"{where}: {spelling} must be a number, got {value!r}.")
        if value != found:
            raise InputError(f"{where}: {spelling} is {value}, but {first} is {found}; correct one.")
    return float(found)
