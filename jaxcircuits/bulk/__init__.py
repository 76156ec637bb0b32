"""Attribution of many prompts into a run directory."""

from jaxcircuits.bulk.runner import Prompts, attribute_to_run, read_prompts
from jaxcircuits.bulk.store import Run, load_run

__all__ = ["Prompts", "Run", "attribute_to_run", "load_run", "read_prompts"]
