"""What checks the annotations of the package while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype; a method annotated with `Self`, which it accepts only on whole classes, goes unchecked."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
