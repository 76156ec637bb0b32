"""Conversion: find each source, read it in its format, check that all fit, write the bundle whole."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from jaxcircuits.bundle import save_bundle
from jaxcircuits.convert import gpt_neo, hub_mixin_sae, original_sae
from jaxcircuits.convert.format import ConvertedSAE, ModelFormat, Options, SAEFormat, read_fields
from jaxcircuits.convert.hub import fetch
from jaxcircuits.convert.tokenizer import read_tokenizer_of, tokenizer_files
from jaxcircuits.errors import InputError
from jaxcircuits.files import BUNDLE, check_free, sha256
from jaxcircuits.sae import SAE

MODEL_FORMATS: dict[str, ModelFormat] = {"gpt_neo": gpt_neo.FORMAT}
"""By the `model_type` of a Hugging Face `config.json`."""
SAE_FORMATS: tuple[SAEFormat, ...] = (original_sae.FORMAT, hub_mixin_sae.FORMAT)
DTYPES = ("float32", "float16", "bfloat16")


def convert(
    model: str,
    saes: Sequence[str],
    out: str | os.PathLike,
    *,
    revision: str | None = None,
    ignore_config_fields: Sequence[str] = (),
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Makes a bundle from a Hugging Face model and autoencoders.

    Args:
        model: A directory, or a hub id `owner/name` or `owner/name@revision`. A path that exists wins.
        saes: Each a `.pt` file with its `.json` beside it, a directory, or a hub id.
        out: The bundle to make.
        revision: Branch, tag or commit of a hub model.
        ignore_config_fields: Config fields to accept though nothing here understands them.
        dtype: One of `DTYPES` to store in; by default each tensor keeps its own.
        overwrite: Whether to replace what is at `out`.

    Raises:
        InputError: A source is missing, damaged, not understood to the last field and tensor, or does not fit the
            model; or `out` is taken. Nothing is written then.

    >>> from jaxcircuits.convert import convert
    >>> convert("no/such/directory", [], "bundle")
    Traceback (most recent call last):
    jaxcircuits.errors.InputError: model: there is no path no/such/directory, and a hub id looks like owner/name ...
    """
    check_free(out, overwrite, BUNDLE)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    options = Options(frozenset(ignore_config_fields), dtype)
    path, commit = _find_model(model, revision)
    _check_apart(out, [path, *(Path(sae) for sae in saes)])
    converted = _model_format(path).read(path, options)
    tokenizer, tokenizer_sources = read_tokenizer_of(path, converted.cfg.d_vocab)
    files = {f"model/{file.name}": file for file in (*converted.files, *tokenizer_sources)}
    named: dict[str, SAE] = {}
    origins: dict[str, str] = {}
    for given in saes:
        one, sae_commit = _read_sae(given, options)
        name = _unique(one.name, named)
        named[name] = one.sae
        origins[name] = given if sae_commit is None else f"{given.split('@')[0]}@{sae_commit}"
        files |= {f"saes/{name}/{file.name}": file for file in one.files}
    command = ["jaxcircuits", "convert", "--model", model, *(word for sae in saes for word in ("--sae", sae))]
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
    save_bundle(out, converted.cfg, converted.params, named, tokenizer, source=source, overwrite=overwrite)


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
        raise InputError(f"{config}: model_type must be {' or '.join(MODEL_FORMATS)}, got {family!r}.")
    return MODEL_FORMATS[family]


def _read_sae(given: str, options: Options) -> tuple[ConvertedSAE, str | None]:
    def at(path: Path) -> SAEFormat | None:
        return next((each for each in SAE_FORMATS if each.matches(path)), None)

    path, commit, name = Path(given), None, Path(given).name
    if at(path) is None and not path.exists():
        path, commit = fetch(given, lambda names: next(filter(None, (f.choose(names) for f in SAE_FORMATS)), []), "SAE")
        name = given.split("@")[0].split("/")[-1]
    found = at(path)
    if found is None:
        layouts = "; or ".join(each.layout for each in SAE_FORMATS)
        raise InputError(f"SAE: {given} is in none of the known layouts; expected {layouts}.")
    one = found.read(path, options)
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
