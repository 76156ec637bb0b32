"""What a model and its autoencoders are worth on text, and what single features are."""

from jaxcircuits.evaluation.batches import BOS, CorpusFile
from jaxcircuits.evaluation.lm import evaluate_lm
from jaxcircuits.evaluation.report import Evaluation, evaluate

__all__ = ["BOS", "CorpusFile", "Evaluation", "evaluate", "evaluate_lm"]
