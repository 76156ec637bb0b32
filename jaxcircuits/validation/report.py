"""What every validation ends in: checks, each with its tolerance, and a verdict over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One quantity compared.

    Attributes:
        quantity: What was compared.
        expected: The number, or words for an array.
        got: The same of what was checked.
        error: How far apart they are, in the contract's sense of relative; `None` where equality was asked.
        tolerance: The largest error that holds.
        ok: Whether it held.
        note: What a reader should know, such as the likely cause of a difference.
    """

    quantity: str
    expected: Any
    got: Any
    error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Checks under one heading; `ok` only if every one held.

    Attributes:
        title: What was validated against what.
        conditions: Model, SAEs, text, dtype, precision, versions, device.
        checks: In the order in which they were made.
        findings: Whatever else was measured, for the JSON.
    """

    title: str
    conditions: Mapping[str, Any]
    checks: Sequence[Check]
    findings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there were checks and all of them held."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        """The checks that did not hold."""
        return [check for check in self.checks if not check.ok]
