"""A validation's report as people read it, and as JSON."""

import json
import math
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxcircuits.report.tables import console, print_tables
from jaxcircuits.validation import Report


def report_json(report: Report) -> dict[str, Any]:
    """The whole report as an object that `json.dumps` takes; an error that has no number is `"inf"`."""
    checks = [{name: _plain(getattr(check, name)) for name in check.__dataclass_fields__} for check in report.checks]
    return {
        "title": report.title,
        "ok": report.ok,
        "conditions": _plain(dict(report.conditions)),
        "checks": checks,
        "findings": _plain(dict(report.findings)),
    }


def print_report(report: Report, *, as_json: bool = False, quiet: bool = False) -> None:
    """Prints a report: conditions, a row a check, and the verdict; with `quiet`, the verdict alone."""
    if as_json:
        print(json.dumps(report_json(report), indent=2, ensure_ascii=False))
        return
    if not quiet:
        print_tables(conditions_table(report), checks_table(report))
    console().print(escape(verdict(report)), soft_wrap=True, highlight=False)


def conditions_table(report: Report) -> Table:
    """What was compared with what."""
    table = Table("condition", "", title=report.title, title_justify="left")
    for name, value in report.conditions.items():
        table.add_row(escape(name), escape(str(value)))
    return table


def checks_table(report: Report) -> Table:
    """A row a check."""
    table = Table("quantity")
    for name in ("expected", "got"):
        table.add_column(name, overflow="fold")
    for name in ("error", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("note", overflow="fold")
    for check in report.checks:
        mark = "held" if check.ok else "[bold red]FAILED[/bold red]"
        numbers = (_number(check.error), _number(check.tolerance))
        words = (escape(str(check.expected)), escape(str(check.got)))
        table.add_row(escape(check.quantity), *words, *numbers, mark, escape(check.note))
    return table


def verdict(report: Report) -> str:
    """One sentence: whether everything held, or what did not and why."""
    total = len(report.checks)
    said = f"{report.findings['verdict']} " if "verdict" in report.findings else ""
    if report.ok:
        return f"{said}All {total} checks held."
    failed = report.failed
    if not failed:
        return "Nothing was checked."
    causes = report.findings.get("causes") or []
    why = "".join(f" It agrees if theirs {cause}." for cause in causes)
    names = [check.quantity for check in failed]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{said}{len(failed)} of {total} checks FAILED: {listed}.{why}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for as text; what is no plain value as its own `str`."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else str(value)
