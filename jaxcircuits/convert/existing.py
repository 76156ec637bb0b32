"""A bundle as the source of another: its model, tokenizer and autoencoders, in the dtype they are stored in."""

from pathlib import Path

from tokenizers import Tokenizer

from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert.format import ConvertedModel, ConvertedSAE
from jaxcircuits.files import BUNDLE, read_json, read_safetensors
from jaxcircuits.sae import SAE
from jaxcircuits.tensors import model_from_tensors, sae_from_tensors


def matches(path: Path) -> bool:
    """Whether a directory is a bundle."""
    return (path / BUNDLE).is_file() and (path / "model.safetensors").is_file()


def read(path: Path) -> tuple[ConvertedModel, Tokenizer | None, dict[str, ConvertedSAE], dict[str, str]]:
    """Reads a bundle.

    Returns:
        The model, the tokenizer, the autoencoders by name, and where the manifest says that these came from.

    Raises:
        InputError: It is damaged.
    """
    bundle = load_bundle(path, processed=False)  # which compares checksums and what fits together
    file = path / "model.safetensors"
    params = model_from_tensors(read_safetensors(file), bundle.cfg, str(file))
    saes: dict[str, ConvertedSAE] = {}
    for name, sae in bundle.saes.items():
        weights = path / "saes" / name / "sae.safetensors"
        stored = SAE(sae_from_tensors(read_safetensors(weights), sae.cfg, str(weights)), sae.cfg)
        saes[name] = ConvertedSAE(name, stored, (), bundle.cfg.processing)
    origins = read_json(path / BUNDLE, "bundle").get("saes")
    known = origins if isinstance(origins, dict) else {}
    about = {name: str(known.get(name, path)) for name in saes}
    return ConvertedModel(bundle.cfg, params, [path / BUNDLE]), bundle.tokenizer, saes, about
