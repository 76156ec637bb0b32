"""Files of a Hugging Face hub repository, at one commit, each checked against the checksum that the hub announced.

Cache, resumed downloads and offline mode (`HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT`) are those of huggingface_hub. It
compares sizes only, so checksums are compared here: a file's name in the cache is what the hub announced of it, the
SHA-256 of a large file and git's hash of a small one.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxcircuits.errors import InputError
from jaxcircuits.files import sha256

Choose = Callable[[Sequence[str]], list[str]]
"""From the names of files, the needed ones; none where they are not of a known layout."""

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)(?:@(?P<revision>.+))?")
_SHARD = re.compile(r"(?P<before>.*-)\d+(?P<after>-of-(?P<number>\d+)\b.*)")
_LOG_IN = "log in with `hf auth login`"


class Repository(NamedTuple):
    """What is asked of the hub.

    Attributes:
        name: `owner/name`.
        revision: Branch, tag or commit; `None` for the main branch.
        what: What it is to hold, which begins each error.
        given: What the user gave that might have been a path; `None` where it could not.
        kind: `"model"` or `"dataset"`.
        folder: The folder in it that holds the files.
    """

    name: str
    revision: str | None
    what: str
    given: str | None = None
    kind: str = "model"
    folder: str = ""

    @property
    def lead(self) -> str:
        """How an error begins that a mistyped path may be the reason of."""
        return f"{self.what}: " if self.given is None else f"{self.what}: there is no path {self.given}, and "

    @property
    def place(self) -> str:
        """The repository or its folder, in words."""
        return f"{self.folder} of {self.name}" if self.folder else self.name

    def within(self, names: Sequence[str]) -> list[str]:
        """Of a repository's files, those of the folder, by their names in it."""
        prefix = f"{self.folder}/" if self.folder else ""
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def fetch(
    given: str, choose: Choose, what: str, revision: str | None = None, *, folders: bool = False
) -> tuple[Path, str]:
    """Downloads the needed files of a repository, or takes them from the hub's cache where there is no network.

    Args:
        given: `owner/name`, `owner/name/folder`, or either with `@revision`.
        choose: From the names of the files, in the folder where one is given, the needed ones.
        what: What it is to hold, for an error.
        revision: Branch, tag or commit.
        folders: Whether `given` may name a folder of the repository.

    Returns:
        A directory with the files, and the commit.

    Raises:
        InputError: `given` names neither a path nor a repository, or the repository cannot be read.
    """
    match = _ID.fullmatch(given)
    if match is None or (match["folder"] and not folders):
        raise InputError(
            f"{what}: there is no path {given}, and a hub id looks like owner/name or owner/name@revision"
            f"{', with a folder as owner/name/folder' * folders}."
        )
    if revision is not None and match["revision"] not in (None, revision):
        raise InputError(f"{what}: {given} names one revision and --revision {revision} another; give one of them.")
    folder = match["folder"].removeprefix("/")
    path, commit, _ = download(
        Repository(match["repo"], revision or match["revision"], what, given, folder=folder), choose
    )
    return path, commit


def download(asked: Repository, choose: Choose) -> tuple[Path, str, list[str]]:
    """Downloads the needed files of a repository, or takes them from the hub's cache where there is no network.

    Args:
        asked: Which one.
        choose: From the names of the files, in the folder where one is asked for, the needed ones.

    Returns:
        A directory with the files, the commit, and the files' names.

    Raises:
        InputError: The repository cannot be read, or a file is not what the hub announced; that file is removed from
            the cache.
    """
    with _quiet_client():
        names = _list(asked)
        if isinstance(names, Exception):
            snapshot, wanted = _cached(asked, choose, names)
        else:
            wanted = _needed(asked, choose, names, "its files are")
            snapshot = _downloaded(asked, wanted)
    path = snapshot / asked.folder
    for name in wanted:
        _check_sum(path / name, asked)
    return path, snapshot.name, wanted  # the cache names a snapshot after its commit


def _list(asked: Repository) -> list[str] | Exception:
    """The names of a repository's files, or why the hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repo, lead = asked.name, asked.lead
    try:
        look = HfApi().dataset_info if asked.kind == "dataset" else HfApi().model_info
        info = look(repo, revision=asked.revision)
    except GatedRepoError:
        raise InputError(f"{lead}on the hub {repo} is gated; accept its terms there and {_LOG_IN}.") from None
    except RepositoryNotFoundError:
        kind = "data set" if asked.kind == "dataset" else "repository"
        raise InputError(
            f"{lead}on the hub there is no {kind} {repo} that you may read; check the name, or {_LOG_IN} if it is "
            "private."
        ) from None
    except RevisionNotFoundError:
        raise InputError(
            f"{asked.what}: {repo} on the hub has no revision {asked.revision}; check its branches and tags."
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return error
        refused = error.response.status_code in (401, 403)
        todo = f"{_LOG_IN}, with a token that may read it" if refused else "try again later"
        raise InputError(f"{asked.what}: the hub refused {repo} ({_reason(error)}); {todo}.") from None
    except Exception as error:  # no network: of another type with each version of the hub's client
        return error
    return [file.rfilename for file in info.siblings or ()]


def _needed(asked: Repository, choose: Choose, names: Sequence[str], words: str) -> list[str]:
    wanted = choose(asked.within(names))
    if not wanted:
        raise InputError(
            f"{asked.what}: {asked.place} on the hub holds none of the known layouts; {words} "
            f"{', '.join(names)[:200] or 'none'}."
        )
    return wanted


def _downloaded(asked: Repository, wanted: Sequence[str]) -> Path:
    """The snapshot with these files.

    By the name the user gave, not by its commit: so the cache learns the name, for when there is no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    patterns = [f"{asked.folder}/{name}" if asked.folder else name for name in wanted]
    try:
        return Path(
            snapshot_download(
                asked.name, repo_type=asked.kind, revision=asked.revision, allow_patterns=[*map(_plain, patterns)]
            )
        )
    except GatedRepoError:
        raise InputError(
            f"{asked.lead}on the hub {asked.name} is gated; accept its terms there and {_LOG_IN}."
        ) from None
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise InputError(
                f"{asked.what}: {asked.name} on the hub lists a file that it does not have ({_reason(error)}); "
                "its repository is damaged."
            ) from None
        raise InputError(
            f"{asked.what}: downloading {asked.name} from the hub failed ({_reason(error)}); try again."
        ) from None


def _plain(name: str) -> str:
    """A file's name as a pattern that matches it alone."""
    return re.sub(r"([\[*?])", r"[\1]", name)


def _cached(asked: Repository, choose: Choose, error: Exception) -> tuple[Path, list[str]]:
    """The snapshot in the cache, and the needed files of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        raise InputError(f"{asked.lead}{asked.name} is no hub id ({_reason(error)}).") from None
    out_of_reach = f"{asked.lead}the hub is out of reach ({_reason(error)})"
    try:  # no patterns: which files are needed is not known before it is known which are there
        options = {"repo_type": asked.kind, "revision": asked.revision, "local_files_only": True, "allow_patterns": []}
        path = Path(snapshot_download(asked.name, **options))  # pyright: ignore[reportArgumentType]
    except Exception:
        raise InputError(f"{out_of_reach}; check {'the path and ' * (asked.given is not None)}the network.") from None
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    wanted = _needed(asked, choose, names, "it is out of reach, and its cache here holds")
    for shard in filter(None, map(_SHARD.fullmatch, wanted)):
        there = [name for name in wanted if (m := _SHARD.fullmatch(name)) and m.group(1, 2) == shard.group(1, 2)]
        if len(there) != int(shard["number"]):
            raise InputError(
                f"{out_of_reach}, and its cache here holds {len(there)} of the {int(shard['number'])} files "
                f"{shard['before']}*{shard['after']}; check the network."
            )
    return path, wanted


def _check_sum(file: Path, asked: Repository) -> None:
    """Compares a file with what the hub announced of it, which is its name in the cache.

    Raises:
        InputError: It is another; it is removed, so that it is downloaded again.
    """
    if not file.is_symlink():  # where a system has none, the cache keeps no checksum
        return
    blob = file.parent / os.readlink(file)
    announced = blob.name
    if re.fullmatch(r"[0-9a-f]{64}", announced):
        found = {sha256(file)}
    elif re.fullmatch(r"[0-9a-f]{40}", announced):
        content = file.read_bytes()  # a small one: git holds it
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found = {git, hashlib.sha1(content).hexdigest()}  # the latter from some mirrors
    else:
        return
    if announced not in found:
        for path in {file, blob, file.resolve()}:
            path.unlink(missing_ok=True)
        raise InputError(
            f"{asked.what}: {file.name} of {asked.place} is not what the hub announced (checksum {announced[:12]}…, "
            f"got {min(found)[:12]}…); it was removed from the cache, try again."
        )


@contextmanager
def _quiet_client() -> Iterator[None]:
    """The hub's client warns of each retry; what comes of them is said in one sentence."""
    from huggingface_hub import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _reason(error: Exception) -> str:
    """What an error says, on one line: of several, those that name a file or an address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if "url" in line.lower() or "size" in line.lower()]
    return (telling or lines)[0].rstrip(".")
