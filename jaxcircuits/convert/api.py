"""Conversion: find each source, read it in its format, check that all fit, write the bundle whole."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcircuits.bundle import Bundle, check_bundle, check_fits, save_bundle
from jaxcircuits.convert import (
    circuit_tracer_sae,
    dictionary_learning_sae,
    existing,
    gemma2,
    gemma_scope_sae,
    gpt2,
    gpt_neo,
    gpt_neox,
    hub_mixin_sae,
    original_sae,
    sae_lens_sae,
    sparsify_sae,
)
from jaxcircuits.convert.format import ConvertedSAE, ModelFormat, Options, SAEFormat, read_fields
from jaxcircuits.convert.hub import fetch
from jaxcircuits.convert.tokenizer import read_tokenizer_of, tokenizer_files
from jaxcircuits.convert.trained_on import check_modules, choose_processing, norm_taken_in
from jaxcircuits.errors import InputError
from jaxcircuits.files import BUNDLE, check_free, sha256
from jaxcircuits.readings import Checked, doubts

MODEL_FORMATS: dict[str, ModelFormat] = {
    "gpt_neo": gpt_neo.FORMAT,
    "gpt2": gpt2.FORMAT,
    "gpt_neox": gpt_neox.FORMAT,
    "gemma2": gemma2.FORMAT,
}
"""By the `model_type` of a Hugging Face `config.json`."""
SAE_FORMATS: tuple[SAEFormat, ...] = (
    sae_lens_sae.FORMAT,
    sparsify_sae.FORMAT,
    dictionary_learning_sae.FORMAT,
    gemma_scope_sae.FORMAT,
    circuit_tracer_sae.FORMAT,
    original_sae.FORMAT,
    hub_mixin_sae.FORMAT,
)
"""In the order they are tried: the last two are known by fewer signs."""
DTYPES = ("float32", "float16", "bfloat16")


class SAESource(NamedTuple):
    """Where an autoencoder is, and what its files do not say.

    Attributes:
        path: A file, a directory, or a hub id `owner/name[/folder][@revision]`.
        format: The name of its format in `SAE_FORMATS`; found from its files by default.
        hook: The hook point that it reads, where its format does not say.
        hook_out: The one that a transcoder writes, likewise.
    """

    path: str
    format: str | None = None
    hook: str | None = None
    hook_out: str | None = None

    def words(self) -> list[str]:
        """As the command line takes it."""
        options = (("--format", self.format), ("--hook", self.hook), ("--hook-out", self.hook_out))
        return ["--sae", self.path, *(word for name, value in options if value for word in (name, value))]


def convert(
    model: str,
    saes: Sequence[str | SAESource],
    out: str | os.PathLike,
    *,
    revision: str | None = None,
    ignore_config_fields: Sequence[str] = (),
    dtype: str | None = None,
    overwrite: bool = False,
    check: bool = True,
    check_text: str | os.PathLike | None = None,
) -> dict[str, Checked]:
    """Makes a bundle from a Hugging Face model and autoencoders.

    Args:
        model: A directory, or a hub id `owner/name` or `owner/name@revision`. A path that exists wins. A bundle's
            directory takes its model, tokenizer and autoencoders over.
        saes: Each a file, a directory or a hub id, or a `SAESource` that says more.
        out: The bundle to make.
        revision: Branch, tag or commit of a hub model.
        ignore_config_fields: Config fields to accept though nothing here understands them.
        dtype: One of `DTYPES` to store in; by default each tensor keeps its own.
        overwrite: Whether to replace what is at `out`.
        check: Whether to refuse an autoencoder that is plainly misread (`jaxcircuits.readings`).
        check_text: A corpus file to check them on; by default the shipped stories.

    Returns:
        What the check found, by name; nothing where it was not asked for, or there was no text for it.

    Raises:
        InputError: A source is missing, damaged, not understood to the last field and tensor, plainly misread, or does
            not fit the model; or `out` is taken. Nothing is written then.

    >>> from jaxcircuits.convert import convert
    >>> convert("no/such/directory", [], "bundle")
    Traceback (most recent call last):
    jaxcircuits.errors.InputError: model: there is no path no/such/directory, and a hub id looks like owner/name ...
    """
    check_free(out, overwrite, BUNDLE)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    options = Options(frozenset(ignore_config_fields), dtype)
    given = [SAESource(sae) if isinstance(sae, str) else sae for sae in saes]
    path, commit = _find_model(model, revision)
    _check_apart(out, [path, *(Path(sae.path) for sae in given)])
    known: dict[str, ConvertedSAE] = {}
    origins: dict[str, str] = {}
    if existing.matches(path):
        if dtype is not None or ignore_config_fields:
            raise InputError(
                f"model: {model} is a bundle and stays as it is; leave --dtype and the fields to ignore out."
            )
        converted, tokenizer, known, about = existing.read(path)
        files = {f"model/{file.name}": file for file in converted.files}
        origins |= about
    else:
        converted = _model_format(path).read(path, options)
        tokenizer, tokenizer_sources = read_tokenizer_of(path, converted.cfg.d_vocab)
        files = {f"model/{file.name}": file for file in (*converted.files, *tokenizer_sources)}
    for source in given:
        one, sae_commit = _read_sae(source, options)
        name = _unique(one.name, known)
        check_modules(one, converted.cfg, name)
        known[name] = norm_taken_in(one, converted.params, name)
        base, _, _ = source.path.partition("@")
        origins[name] = source.path if sae_commit is None else f"{base}@{sae_commit}"
        files |= {f"saes/{name}/{file.name}": file for file in one.files}
    cfg = replace(converted.cfg, processing=choose_processing(known, converted.cfg))
    command = ["jaxcircuits", "convert", "--model", model, *(word for source in given for word in source.words())]
    command += [word for name in ignore_config_fields for word in ("--ignore-config-field", name)]
    command += [
        word for option, value in (("--revision", revision), ("--dtype", dtype)) if value for word in (option, value)
    ]
    source = {
        "command": shlex.join([*command, "--out", str(out)]),
        "source": model,
        **({} if commit is None else {"revision": commit}),
        "saes": origins,
        "source_sha256": {name: sha256(file) for name, file in files.items()},
    }
    saes_by_name = {name: one.sae for name, one in known.items()}
    found = {}
    if check:
        for name, sae in saes_by_name.items():
            check_fits(sae, cfg, name)
        params, read = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), (converted.params, saes_by_name))
        found = check_bundle(Bundle(cfg, params, read, tokenizer), check_text)
        doubts(found)
    save_bundle(out, cfg, converted.params, saes_by_name, tokenizer, source=source, overwrite=overwrite)
    return found


def _find_model(given: str, revision: str | None) -> tuple[Path, str | None]:
    path = Path(given)
    if path.is_file():
        raise InputError(f"model: {path} is a file, expected the directory that holds it and its config.json.")
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"model: --revision {revision} is of a hub model, but {given} is a directory; leave it out."
            )
        return path, None

    def choose(names: Sequence[str]) -> list[str]:
        files = {file for each in MODEL_FORMATS.values() for file in each.choose(names)}
        return sorted(files | set(tokenizer_files(names)))

    return fetch(given, choose, "model", revision)


def _model_format(path: Path) -> ModelFormat:
    config = path / "config.json"
    family = read_fields(config, "model").get("model_type")
    if family not in MODEL_FORMATS:
        raise InputError(f"{config}: model_type must be one of {', '.join(MODEL_FORMATS)}, got {family!r}.")
    return MODEL_FORMATS[family]


def _read_sae(source: SAESource, options: Options) -> tuple[ConvertedSAE, str | None]:
    formats = [each for each in SAE_FORMATS if source.format in (None, each.name)]
    if not formats:
        known = ", ".join(each.name for each in SAE_FORMATS)
        raise InputError(f"SAE: --format must be one of {known}, got {source.format!r}.")

    def at(path: Path) -> SAEFormat | None:
        return next((each for each in formats if each.matches(path)), None)

    path, commit, name = Path(source.path), None, Path(source.path).name
    if at(path) is None and not path.exists():
        path, commit = fetch(
            source.path, lambda names: next(filter(None, (f.choose(names) for f in formats)), []), "SAE", folders=True
        )
        name = source.path.split("@")[0].split("/")[-1]
    found = at(path)
    if found is None:
        layouts = "; or ".join(f"{each.layout} [--format {each.name}]" for each in formats)
        raise InputError(f"SAE: {source.path} is in none of the known layouts; expected {layouts}.")
    one = found.read(path, options._replace(hook=source.hook, hook_out=source.hook_out))
    if source.hook_out is not None and not one.sae.cfg.transcodes:
        raise InputError(
            f"SAE: {source.path} is no transcoder, so it has no --hook-out {source.hook_out}; leave it out."
        )
    if source.hook is not None and one.sae.cfg.hook_name != source.hook:
        raise InputError(
            f"SAE: {source.path} says that its hook point is {one.sae.cfg.hook_name}, but --hook is {source.hook}; "
            "leave it out."
        )
    return one._replace(name=one.name or name or path.resolve().name), commit


def _unique(name: str, taken: Collection[str]) -> str:
    """A name that is a plain directory's and not taken yet."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._-") or "sae"
    return next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def _check_apart(out: str | os.PathLike, sources: Iterable[Path]) -> None:
    """Replacing `out` must not delete what is read.

    Raises:
        InputError: A source lies at or under `out`.
    """
    place = Path(out).resolve()
    for source in sources:
        if source.resolve() == place or place in source.resolve().parents:
            raise InputError(f"the output {out} holds the source {source}, which it would replace; name another.")
