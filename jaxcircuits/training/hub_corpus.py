"""Where a training text comes from: a file, or a data set on the Hugging Face hub."""

import re
from collections.abc import Iterator, Sequence

from jaxcircuits.convert.hub import Repository, download
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError

HUB = "hub:"
FORMATS = (".parquet", ".jsonl", ".txt")


def read_training_texts(source: str) -> list[str]:
    """All texts of a corpus file, or of the split `train` of `hub:owner/name[@revision]`.

    Raises:
        InputError: The file or data set is missing, of another kind, or holds no text.
    """
    return list(_read_hub(source) if source.startswith(HUB) else read_corpus(source))


def _read_hub(source: str) -> Iterator[str]:
    match = re.fullmatch(r"hub:([^/@]+/[^/@]+)(?:@(.+))?", source)
    if match is None:
        raise InputError(f"corpus: expected hub:owner/name or hub:owner/name@revision, got {source}.")
    repo, revision = match.groups()
    asked = Repository(repo, revision, "corpus", kind="dataset")
    path, _, files = download(asked, lambda names: training_files(source, names))
    for name in files:
        yield from read_corpus(path / name)


def training_files(source: str, names: Sequence[str]) -> list[str]:
    """The files of a data set that hold its training text: the first format of `FORMATS` that has some.

    Files whose name says `train` are preferred; where none does, all are taken that do not name another split.

    Raises:
        InputError: There is none.
    """
    for chosen in (
        [n for n in names if "train" in n.lower()],
        [n for n in names if not re.search("valid|test|dev|readme|license", n.lower())],
    ):
        for suffix in FORMATS:
            if found := sorted(n for n in chosen if n.endswith(suffix)):
                return found
    raise InputError(f"corpus: {source} has no {', '.join(FORMATS)} file with training text; give a file instead.")
