"""What checks the annotations of the package while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

NUMBERS = BeartypeConf(is_pep484_tower=True)
"""Where a float is expected an int will do, as the type checker has it."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype; a method annotated with `Self`, which it accepts only on whole classes, goes unchecked."""
    try:
        return beartype(conf=NUMBERS)(function)
    except BeartypeDecorHintPep673Exception:
        return function
