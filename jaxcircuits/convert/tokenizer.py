"""The tokenizer of a Hugging Face directory."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from jaxcircuits.bundle import read_tokenizer
from jaxcircuits.errors import InputError

_FAST = "tokenizer.json"
_SLOW = ("vocab.json", "merges.txt")
_SLOW_SETTINGS = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")


def tokenizer_files(names: Sequence[str]) -> list[str]:
    """From the names of a directory's files, those that hold its tokenizer; none where there is none."""
    if _FAST in names:
        return [_FAST]
    if not set(_SLOW) & set(names):
        return []
    return [name for name in (*_SLOW, *_SLOW_SETTINGS) if name in names]


def read_tokenizer_of(path: Path, d_vocab: int) -> tuple[Tokenizer | None, list[Path]]:
    """Reads a directory's `tokenizer.json`, or converts its `vocab.json` and `merges.txt`.

    Args:
        path: The directory.
        d_vocab: The model's vocabulary.

    Returns:
        The tokenizer, `None` where the directory has none, and the files it came from.

    Raises:
        InputError: A file is missing or damaged, or there are token ids that the model has no embedding for.
    """
    files = [path / name for name in tokenizer_files([file.name for file in path.iterdir()])]
    if not files:
        return None, []
    tokenizer = read_tokenizer(files[0]) if files[0].name == _FAST else _converted(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= d_vocab:
        raise InputError(
            f"{files[0]}: the tokenizer has ids up to {largest}, but the model's vocabulary ends at {d_vocab - 1}; "
            "it is another model's tokenizer."
        )
    return tokenizer, files


def _converted(path: Path) -> Tokenizer:
    for name in _SLOW:
        if not (path / name).is_file():
            raise InputError(
                f"there is no file {path / name}; a tokenizer takes tokenizer.json, or {' and '.join(_SLOW)}."
            )
    from transformers import AutoTokenizer

    try:
        converted = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return converted.backend_tokenizer
    except Exception as error:  # transformers raises whatever its many readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{path / _SLOW[0]} and {_SLOW[1]} are no tokenizer ({reason}); download them again."
        ) from None
