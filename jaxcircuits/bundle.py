"""A bundle: a model, its autoencoders and its tokenizer as one directory of safetensors and JSON."""

import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.files import (
    BUNDLE,
    new_directory,
    read_json,
    read_safetensors,
    sha256,
    write_json,
    write_safetensors,
)
from jaxcircuits.model import hook_width, precedes, process_weights
from jaxcircuits.readings import Checked, check_readings, doubts, sample_rows
from jaxcircuits.sae import SAE
from jaxcircuits.tensors import model_from_tensors, model_to_tensors, sae_from_tensors
from jaxcircuits.types import ModelWeights

SCHEMA = 1


@dataclass(frozen=True)
class Bundle:
    """A model with its autoencoders, ready to compute.

    Attributes:
        cfg: The model's description.
        params: Its weights, processed as `cfg.processing` says.
        saes: Autoencoders by name, in the order of their hook points.
        tokenizer: `None` for a bundle that takes token ids only.
        path: Where it was loaded from.
        manifest: Source, revision, command and checksums.
    """

    cfg: ModelConfig
    params: ModelWeights
    saes: Mapping[str, SAE]
    tokenizer: Tokenizer | None = None
    path: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def tokenize(self, text: str) -> Int[np.ndarray, "pos"]:
        """Token ids of a text, BOS first.

        Raises:
            InputError: The bundle has no tokenizer, or the text is empty or no text.
        """
        if self.tokenizer is None:
            raise InputError("this bundle has no tokenizer, so it takes token ids only; give --prompt-ids FILE.json.")
        try:
            text.encode()
        except UnicodeEncodeError:  # a command line's bytes that are not UTF-8 arrive as lone surrogates
            raise InputError("the prompt is not UTF-8; pass it in a file that is.") from None
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise InputError("the prompt is empty; expected at least one word.")
        bos = [] if self.cfg.bos_token_id is None else [self.cfg.bos_token_id]
        return np.array(bos + ids, np.int32)

    def token_strings(self, tokens: Int[np.ndarray, "pos"]) -> list[str]:
        """Each token as text, for people to read; without a tokenizer, its number."""
        if self.tokenizer is None:
            return [f"#{token}" for token in tokens]
        return [self._decoded[int(token)] for token in tokens]

    @cached_property
    def _decoded(self) -> "_DecodedTokens":
        assert self.tokenizer is not None
        return _DecodedTokens(self.tokenizer)


class _DecodedTokens(dict[int, str]):
    """Token strings, decoded once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = self._tokenizer.decode([token], skip_special_tokens=False) or f"#{token}"
        return self[token]


def shipped_bundle() -> Path:
    """Where the weights that ship with the package are: inside the wheel, or beside an editable package."""
    here = Path(__file__).parent
    for candidate in (here / "weights", here.parent / "weights"):
        if (candidate / "config.json").is_file():
            return candidate
    raise InputError("the shipped weights are not installed; name a bundle with --bundle DIR.")


def load_bundle(
    path: str | os.PathLike | None = None, *, dtype=jnp.float32, processed: bool = True, check: bool = False
) -> Bundle:
    """Loads a bundle and applies the weight processing that its config records.

    Args:
        path: The bundle's directory; the shipped one by default.
        dtype: What to compute in. float64 needs JAX's x64 mode.
        processed: Whether to process; off gives the weights as they were stored.
        check: Whether to refuse an autoencoder that is plainly misread, and to warn of one that is odd: see
            `check_bundle`, which takes some seconds.

    Raises:
        InputError: Something is missing, damaged, unknown or does not fit together.

    >>> from jaxcircuits import load_bundle
    >>> bundle = load_bundle()
    >>> bundle.cfg.n_layers, list(bundle.saes)
    (2, ['blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post'])
    """
    path = shipped_bundle() if path is None else Path(path)
    if not path.is_dir():
        raise InputError(f"there is no bundle {path}; expected a directory that `jaxcircuits convert` wrote.")
    manifest = read_json(path / BUNDLE, "bundle")
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InputError(f"{path / BUNDLE}: expected a bundle of schema {SCHEMA}; convert the source again.")
    sums = manifest.get("sha256")
    if not isinstance(sums, dict) or "model.safetensors" not in sums:
        raise InputError(f"{path / BUNDLE}: expected the sha256 of each file; copy or convert the bundle again.")
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise InputError(f"the bundle {path} lacks {name}, which its manifest lists; copy or convert it again.")
        if sha256(path / name) != expected:
            raise InputError(f"{path / name} is damaged: its checksum is not the manifest's; copy or convert it again.")
    cfg = ModelConfig.from_json(read_json(path / "config.json", "bundle"), str(path / "config.json"))
    params = model_from_tensors(read_safetensors(path / "model.safetensors"), cfg, str(path / "model.safetensors"))
    params = jax.device_put(jax.tree.map(lambda w: w.astype(dtype), params))  # cast here: else a program a shape
    if processed:
        params = process_weights(params, cfg.processing)
    named = {p.name: check_fits(load_sae(p, dtype=dtype), cfg, p.name) for p in sorted((path / "saes").glob("*/"))}
    tokenizer_file = path / "tokenizer.json"
    tokenizer = read_tokenizer(tokenizer_file) if tokenizer_file.is_file() else None
    bundle = Bundle(cfg, params, named, tokenizer, path, manifest)
    if check:
        for doubt in doubts(check_bundle(bundle)):
            warnings.warn(doubt, stacklevel=2)
    return bundle


def check_bundle(bundle: Bundle, text: str | os.PathLike | None = None) -> dict[str, Checked]:
    """Measures each autoencoder on a little text, and a poor one under other readings: see `readings`.

    Args:
        bundle: Model, autoencoders and tokenizer, processed or not.
        text: A corpus file; the shipped stories by default.

    Returns:
        By name; nothing where no text was given and the shipped stories are not text for the bundle's tokenizer.

    Raises:
        InputError: The text cannot be used.

    >>> from jaxcircuits import check_bundle, load_bundle
    >>> any(one.misread for one in check_bundle(load_bundle()).values())
    False
    """
    if not bundle.saes or (bundle.tokenizer is None and text is None):
        return {}
    texts = read_corpus(shipped_bundle() / "stories.txt" if text is None else text)
    sample = sample_rows(bundle.tokenize, texts, bundle.cfg.n_ctx)
    if sample is None:
        if text is None:
            return {}
        raise InputError(
            f"{text}: the bundle's tokenizer knows hardly any of its words; give text of the model's kind."
        )
    return check_readings(process_weights(bundle.params, bundle.cfg.processing), bundle.cfg, bundle.saes, *sample)


def save_bundle(
    path: str | os.PathLike,
    cfg: ModelConfig,
    params: ModelWeights,
    saes: Mapping[str, SAE],
    tokenizer: Tokenizer | None,
    *,
    source: Mapping[str, Any],
    dtype=None,
    overwrite: bool = False,
) -> None:
    """Writes a bundle: weights as they came, with a manifest of where they came from.

    Args:
        path: The directory to make.
        cfg: The model's description.
        params: Its *unprocessed* weights.
        saes: Autoencoders by name.
        tokenizer: Its tokenizer, if there is one.
        source: What the manifest says of the origin (source, revision and so on).
        dtype: What to store in; as it is by default.
        overwrite: Whether to replace a bundle that is there.

    Raises:
        InputError: The place is taken or cannot be written, or an autoencoder does not fit.
    """
    for name, sae in saes.items():
        check_fits(sae, cfg, name)
    with new_directory(path, overwrite, BUNDLE) as new:
        write_json(new / "config.json", cfg.to_json())
        write_safetensors(new / "model.safetensors", model_to_tensors(params, cfg), dtype)
        if tokenizer is not None:
            tokenizer.save(str(new / "tokenizer.json"))
        for name, sae in saes.items():
            save_sae(new / "saes" / name, sae, dtype)
        write_manifest(new, source)


def write_manifest(path: Path, source: Mapping[str, Any]) -> None:
    """Writes `manifest.json` over the files that are there."""
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix in (".json", ".safetensors"))
    write_json(
        path / BUNDLE,
        {
            "schema": SCHEMA,
            "command": shlex.join(["jaxcircuits", *sys.argv[1:]]),
            **source,
            "jaxcircuits": version("jaxcircuits"),
            "sha256": {name: sha256(path / name) for name in files if name != BUNDLE},
        },
    )


def load_sae(path: str | os.PathLike, *, dtype=jnp.float32) -> SAE:
    """Loads one autoencoder of a bundle: a directory with `config.json` and `sae.safetensors`.

    Raises:
        InputError: A file is missing or damaged, or tensors and config do not fit.

    >>> from jaxcircuits import load_bundle, load_sae
    >>> sae = load_sae(load_bundle().path / "saes" / "blocks.0.mlp.hook_post")
    >>> sae.cfg.hook_name
    'blocks.0.mlp.hook_post'
    """
    path = Path(path)
    cfg = SAEConfig.from_json(read_json(path / "config.json", "SAE"), str(path / "config.json"))
    tensors = read_safetensors(path / "sae.safetensors")
    weights = sae_from_tensors(tensors, cfg, str(path / "sae.safetensors"))
    return SAE(jax.device_put(jax.tree.map(lambda w: w.astype(dtype), weights)), cfg)


def save_sae(path: str | os.PathLike, sae: SAE, dtype=None) -> None:
    """Writes one autoencoder's directory."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", sae.cfg.to_json())
    tensors = {name: tensor for name, tensor in sae.weights._asdict().items() if tensor is not None}
    write_safetensors(path / "sae.safetensors", tensors, dtype)


def check_fits(sae: SAE, cfg: ModelConfig, name: str) -> SAE:
    """Returns the autoencoder if the model has its hook point, of its width.

    Raises:
        InputError: It has not.
    """
    for hook, given in ((sae.cfg.hook_name, sae.cfg.d_in), (sae.cfg.hook_written, sae.cfg.width_written)):
        try:
            width = hook_width(cfg, hook)
        except InputError as error:
            raise InputError(f"SAE {name}: {error}") from None
        if width != given:
            what = "d_in" if hook == sae.cfg.hook_name else "d_out"
            raise InputError(
                f"SAE {name}: its {what} is {given}, but {hook} of this model has width {width}; "
                "it was trained on another model or hook point."
            )
    if sae.cfg.transcodes and not precedes(cfg, sae.cfg.hook_name, sae.cfg.hook_written):
        raise InputError(f"SAE {name}: it reads {sae.cfg.hook_name}, which comes after {sae.cfg.hook_written}.")
    return sae


def read_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a `tokenizer.json`.

    Raises:
        InputError: It is missing or not one.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{path} is not a tokenizer.json ({str(error).splitlines()[0]}).") from None
