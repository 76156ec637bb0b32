"""Is it right? Numbers against another implementation's, edges against what interventions do."""

from jaxcircuits.validation.report import Check, Report

__all__ = ["Check", "Report"]
