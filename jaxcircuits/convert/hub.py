"""Files of a Hugging Face hub repository, at one commit."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxcircuits.errors import InputError

_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)(?:@(?P<revision>.+))?")
_CONFIGS = ("config.json", "cfg.json", "params.npz")
"""Files of which every layout has one."""


def fetch(
    given: str,
    choose: Callable[[Sequence[str]], list[str]],
    what: str,
    revision: str | None = None,
    *,
    folders: bool = False,
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
    repo, folder = match["repo"], match["folder"].removeprefix("/")
    prefix = f"{folder}/" if folder else ""
    if revision is not None and match["revision"] not in (None, revision):
        raise InputError(f"{what}: {given} names one revision and --revision {revision} another; give one of them.")
    revision = revision or match["revision"]

    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    here = f"{what}: there is no path {given}, and on the hub"
    try:
        info = HfApi().model_info(repo, revision=revision)
    except GatedRepoError:
        raise InputError(f"{here} {repo} is gated; accept its terms there and log in with `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise InputError(f"{here} no repository {repo} that you may read; check the name.") from None
    except RevisionNotFoundError:
        raise InputError(
            f"{what}: {repo} on the hub has no revision {revision}; check its branches and tags."
        ) from None
    except HfHubHTTPError as error:
        raise InputError(f"{what}: the hub refused {repo} ({_reason(error)}); try again later.") from None
    except Exception as error:  # no network: of another type with each version of the hub's client
        return _cached(given, repo, folder, revision, what, error)
    names = [file.rfilename for file in info.siblings or ()]
    wanted = choose([name.removeprefix(prefix) for name in names if name.startswith(prefix)])
    if not wanted:
        place = f"{repo} on the hub" if not folder else f"{folder} of {repo} on the hub"
        raise InputError(f"{what}: {place} holds none of the known layouts; its files are {', '.join(names)[:200]}.")
    try:
        # By the name the user gave, not by its commit: so the cache learns the name, for when there is no network.
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=[prefix + name for name in wanted]))
    except GatedRepoError:
        raise InputError(f"{here} {repo} is gated; accept its terms there and log in with `hf auth login`.") from None
    except Exception as error:
        raise InputError(f"{what}: downloading {repo} from the hub failed ({_reason(error)}); try again.") from None
    return path / folder, path.name  # the cache names a snapshot after its commit


def _cached(given: str, repo: str, folder: str, revision: str | None, what: str, error: Exception) -> tuple[Path, str]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        raise InputError(f"{what}: there is no path {given}, and {repo} is no hub id ({_reason(error)}).") from None
    # It tells the directory of the snapshot, whatever else of the repository is cached.
    names = [f"{folder}/{name}" if folder else name for name in _CONFIGS]
    found = (try_to_load_from_cache(repo, name, revision=revision) for name in names)
    config = next((file for file in found if isinstance(file, str)), None)
    if config is None:
        raise InputError(
            f"{what}: there is no path {given}, and the hub is out of reach ({_reason(error)}); check path and network."
        )
    path = Path(config).parent
    return path, path.parents[len(Path(folder).parts) - 1].name if folder else path.name


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
