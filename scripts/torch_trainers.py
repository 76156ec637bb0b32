"""Trainers of SAELens and of dictionary_learning behind one face, for `compare_trainers.py`."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from jaxcircuits.config import SAEConfig
from jaxcircuits.sae import SAE
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.types import SAEWeights

KINDS = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def _array(tensor: torch.Tensor, factor: float = 1.0) -> Any:
    return jnp.asarray((factor * tensor.detach().double()).float().numpy())


class SAELens:
    """`SAETrainer` with its own loss, optimiser, schedules and input normalisation, on batches that are given."""

    def __init__(self, kind: str, hook: str, d_in: int, settings: SAETraining, first: np.ndarray, **options: Any):
        torch.manual_seed(settings.seed)
        sae_class, config = KINDS[kind]
        self.hook, self.kind = hook, kind
        if kind == "standard":
            options["l1_warm_up_steps"] = settings.steps // 4
        else:
            options["k"] = settings.kept
        self.sae = sae_class(
            config(
                d_in=d_in,
                d_sae=settings.expansion * d_in,
                normalize_activations="expected_average_only_in",
                **options,
            )
        )
        decay = round(settings.decay * settings.steps)
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=settings.steps * settings.batch_tokens,
                train_batch_size_samples=settings.batch_tokens,
                lr=settings.lr,
                lr_end=settings.lr / 10,
                lr_warm_up_steps=max(1, round(settings.warmup * settings.steps)),
                lr_decay_steps=decay,
                dead_feature_window=settings.buffer_tokens // 2 // settings.batch_tokens,
                n_batches_for_norm_estimate=len(first) // settings.batch_tokens,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            self.sae,
            self._batches(first, settings.batch_tokens),
        )
        self.trainer.activation_scaler.estimate_scaling_factor(
            d_in=d_in,
            data_provider=self._batches(first, settings.batch_tokens),
            n_batches_for_norm_estimate=len(first) // settings.batch_tokens,
        )

    def _batches(self, values: np.ndarray, size: int) -> Iterator[torch.Tensor]:
        for i in range(0, len(values), size):
            yield torch.from_numpy(values[i : i + size])

    def step(self, values: np.ndarray) -> None:
        """Takes a step."""
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(torch.from_numpy(values))
        self.trainer.n_training_steps += 1

    def sae_of(self) -> SAE:
        """What has been trained, for values as they are."""
        factor = self.trainer.activation_scaler.scaling_factor
        assert factor is not None
        self.sae.fold_activation_norm_scaling_factor(factor)
        state = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving_inference(state)
        threshold = _array(state["threshold"]) if "threshold" in state else None
        weights = SAEWeights(*(_array(state[n]) for n in ("W_enc", "b_enc", "W_dec", "b_dec")), threshold=threshold)
        d_in, d_sae = weights.W_enc.shape
        activation = {"standard": "relu", "topk": "topk", "batchtopk": "jumprelu"}[self.kind]
        k = self.sae.cfg.k if activation == "topk" else None
        return SAE(weights, SAEConfig(d_in, d_sae, self.hook, activation, k=k))


class DictionaryLearning:
    """`BatchTopKTrainer`, on values scaled to a mean squared norm of 1 as its `trainSAE` does."""

    def __init__(self, hook: str, d_in: int, settings: SAETraining, first: np.ndarray):
        self.hook = hook
        self.factor = float(np.sqrt((first**2).sum(1).mean()))
        warmup = max(1, round(settings.warmup * settings.steps))
        self.trainer = BatchTopKTrainer(
            settings.steps,
            d_in,
            settings.expansion * d_in,
            settings.kept,
            layer=0,
            lm_name="",
            lr=settings.lr,
            warmup_steps=warmup,
            decay_start=settings.steps - round(settings.decay * settings.steps),
            threshold_beta=0.99,
            threshold_start_step=settings.steps // 4,
            seed=settings.seed,
            device="cpu",
        )
        self.trainer.dead_feature_threshold = settings.buffer_tokens // 2
        self.done = 0

    def step(self, values: np.ndarray) -> None:
        """Takes a step."""
        self.trainer.update(self.done, torch.from_numpy(values) / self.factor)
        self.done += 1

    def sae_of(self) -> SAE:
        """What has been trained, for values as they are."""
        ae = self.trainer.ae
        d_sae = ae.encoder.out_features
        weights = SAEWeights(
            _array(ae.encoder.weight.T),
            _array(ae.encoder.bias, self.factor),
            _array(ae.decoder.weight.T),
            _array(ae.b_dec, self.factor),
            jnp.full(d_sae, float(ae.threshold) * self.factor),
        )
        return SAE(weights, SAEConfig(weights.W_enc.shape[0], d_sae, self.hook, "jumprelu"))
