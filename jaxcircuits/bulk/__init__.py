"""Attribution of many prompts into a run directory."""

from jaxcircuits.bulk.prompts import Prompts, read_prompts
from jaxcircuits.bulk.repeat import Repeated, repeat_run
from jaxcircuits.bulk.run import Run, load_run
from jaxcircuits.bulk.runner import attribute_to_run

__all__ = ["Prompts", "Repeated", "Run", "attribute_to_run", "load_run", "read_prompts", "repeat_run"]
