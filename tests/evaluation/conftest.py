"""The tiny model and texts that training is tested on."""

from tests.training.conftest import bundle, words  # noqa: F401
