"""Where a training text comes from: a file, or a data set on the Hugging Face hub."""

import re
from collections.abc import Iterator, Sequence

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
    from huggingface_hub import hf_hub_download, list_repo_files, logging

    match = re.fullmatch(r"hub:([^/@]+/[^/@]+)(?:@(.+))?", source)
    if match is None:
        raise InputError(f"corpus: expected hub:owner/name or hub:owner/name@revision, got {source}.")
    repo, revision = match.groups()
    logging.set_verbosity_error()  # each retry would warn; what comes of them is said below
    try:
        names = training_files(source, list_repo_files(repo, repo_type="dataset", revision=revision))
        for name in names:
            yield from read_corpus(hf_hub_download(repo, name, repo_type="dataset", revision=revision))
    except InputError:
        raise
    except Exception as error:  # no network: of another type with each version of the hub's client
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"corpus: cannot read {source} ({reason}); check name, revision and network.") from None


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
