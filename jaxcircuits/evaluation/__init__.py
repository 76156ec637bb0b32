"""What a model and its autoencoders are worth on text, and what single features are."""

from jaxcircuits.evaluation.batches import BOS, CorpusFile
from jaxcircuits.evaluation.features import Example, FeatureSummary, describe_features
from jaxcircuits.evaluation.lm import evaluate_lm
from jaxcircuits.evaluation.per_token import TextLosses, token_losses
from jaxcircuits.evaluation.report import Evaluation, evaluate

__all__ = [
    "BOS",
    "CorpusFile",
    "Evaluation",
    "Example",
    "FeatureSummary",
    "TextLosses",
    "describe_features",
    "evaluate",
    "evaluate_lm",
    "token_losses",
]
