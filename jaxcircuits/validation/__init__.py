"""Is it right? Numbers against another implementation's, edges against what interventions do."""

from jaxcircuits.validation.bisect import bisect
from jaxcircuits.validation.original import validate_study
from jaxcircuits.validation.recorded import shipped_reference, validate_recorded
from jaxcircuits.validation.reference import Reference, read_reference, write_reference
from jaxcircuits.validation.report import Check, Report

__all__ = [
    "Check",
    "Reference",
    "Report",
    "bisect",
    "read_reference",
    "shipped_reference",
    "validate_recorded",
    "validate_study",
    "write_reference",
]
