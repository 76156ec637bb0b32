"""Writes samples of autoencoders for `record_sae_samples.py`, with what their packages compute of random inputs."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

D_IN, D_SAE, D_OUT, K, N = 16, 64, 20, 8, 12
RESID, NORMED, MLP_OUT = "blocks.0.hook_resid_post", "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
ABOUT = {"model_name": "tiny", "prepend_bos": True, "context_size": 16, "dataset_path": "none"}


class Recorder:
    """Writes samples and what the manifest says of them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.samples: dict[str, dict[str, Any]] = {}

    def __call__(
        self,
        name: str,
        write: Callable[[Path], Any],
        encode: Callable[[torch.Tensor], torch.Tensor] | None,
        output: Callable[[torch.Tensor], torch.Tensor] | None = None,
        source: str = ".",
        shape: tuple[int, ...] = (N, D_IN),
        **about: Any,
    ) -> None:
        """Records one: `source` is what a user would convert; without `encode` it is one to be refused."""
        path = self.out / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        write(path)
        self.samples[name] = {"source": source, **about}
        if encode is None or output is None:
            return
        x = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode()))) * 1.5 + 0.2
        with torch.no_grad():
            features, out = encode(x), output(x)
        arrays = {"x": x, "features": features, "output": out}
        np.savez_compressed(path / "expected.npz", **{k: v.float().flatten(1).numpy() for k, v in arrays.items()})

    def write_manifest(self, packages: tuple[str, ...]) -> None:
        """Adds what was recorded to what other environments have recorded."""
        file = self.out / "manifest.json"
        manifest = json.loads(file.read_text()) if file.is_file() else {}
        versions = {package: version(package) for package in ("torch", "numpy", *packages)}
        manifest |= {name: {**about, "versions": versions} for name, about in self.samples.items()}
        file.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def randomized(module: torch.nn.Module, name: str) -> Any:
    """Sets every parameter at random: as made, biases and gates are zero and decoders normed, which shows nothing."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                value *= D_IN**-0.5 * torch.empty(len(value), 1).uniform_(0.5, 2, generator=generator)
            elif "threshold" in key:
                value = value.abs() - 0.1  # some below zero
            elif "scaling" in key:
                value = 1 + 0.3 * value
            else:
                value *= 0.3
            parameter.copy_(value)
    return module.requires_grad_(False)


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file."""
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
