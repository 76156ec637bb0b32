"""What a model's hook points hold on many stories: padded batches, and a shuffled buffer that a step number fixes."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.model import forward
from jaxcircuits.rows import Row, padded_batches
from jaxcircuits.training.lm import Batches
from jaxcircuits.training.settings import LMTraining, SAETraining
from jaxcircuits.types import ModelWeights


@partial(jax.jit, static_argnames=("cfg", "hook_name"))
def hook_values(
    params: ModelWeights, cfg: ModelConfig, tokens: Int[Array, "batch pos"], hook_name: str
) -> Float[Array, "batch pos d_in"]:
    """The value of one hook point at each token, heads laid side by side."""
    _, acts = forward(params, cfg, tokens, taps=(hook_name,), logits_at=None)
    return acts[hook_name].reshape(*tokens.shape, -1)


class ActivationBuffer:
    """Batches of a hook's values at tokens of many stories, in an order that depends on seed and step alone.

    One block of stories is in memory at a time. It is computed again after a resume, so nothing of it
    has to be stored. BOS is in it as often as in the text.
    """

    def __init__(self, bundle: Bundle, hook_name: str, rows: Sequence[Row], settings: SAETraining) -> None:
        self._bundle, self._hook_name, self._rows, self._settings = bundle, hook_name, rows, settings
        self._block_steps = settings.buffer_tokens // settings.batch_tokens
        self._n_steps = settings.reconstruction_steps
        self._blocks = self._plan(-(-max(1, self._n_steps) // self._block_steps))
        self._held: int | None = None
        self._values: np.ndarray = np.zeros((0, 0), np.float32)

    def _plan(self, n_blocks: int) -> list[list[int]]:
        """The rows of each block: epoch after epoch in random order, each block until it has enough tokens."""
        blocks: list[list[int]] = []
        block: list[int] = []
        tokens, epoch = 0, 0
        while True:
            for i in np.random.default_rng([self._settings.order, epoch]).permutation(len(self._rows)):
                block.append(int(i))
                tokens += len(self._rows[i]) - 1
                if tokens >= self._settings.buffer_tokens:
                    blocks.append(block)
                    block, tokens = [], 0
                    if len(blocks) == n_blocks:
                        return blocks
            epoch += 1

    def __len__(self) -> int:
        return self._n_steps

    def __call__(self, step: int) -> Float[np.ndarray, "batch d_in"]:
        """The values of a step."""
        block, within = divmod(step, self._block_steps)
        if block != self._held:
            self._values, self._held = self._compute(block), block
        size = self._settings.batch_tokens
        return self._values[within * size : (within + 1) * size]

    def _compute(self, block: int) -> Float[np.ndarray, "tokens d_in"]:
        rows = [self._rows[i] for i in self._blocks[block]]
        values = []
        for _, batch in padded_batches(rows, self._bundle.cfg.n_ctx):
            inputs = np.maximum(batch[:, :-1], 0)
            acts = hook_values(self._bundle.params, self._bundle.cfg, inputs, self._hook_name)
            values.append(np.asarray(acts)[batch[:, 1:] >= 0])
        every = np.concatenate(values)
        order = np.random.default_rng([self._settings.order, block, 1]).permutation(len(every))
        return every[order[: self._settings.buffer_tokens]]


class StoryBatches:
    """Batches of whole rows of like length, in an order that depends on seed and step alone."""

    def __init__(self, rows: Sequence[Row], n_ctx: int, settings: SAETraining) -> None:
        size = max(settings.batch_tokens, n_ctx)
        lm = LMTraining(n_ctx=n_ctx, batch_tokens=size, epochs=1.0, seed=settings.order + 1)
        self._batches = Batches(rows, lm)

    def __call__(self, step: int) -> Int[np.ndarray, "batch row"]:
        """The rows of a step; -1 where a row has ended. After the last batch the first comes again."""
        return self._batches(step % len(self._batches))
