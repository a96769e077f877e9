"""Locates a model's files: in a directory, in the `huggingface_hub` cache, or on the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onereward_jax.config.find import find_model
from onereward_jax.errors import UserError
from onereward_jax.weights.safetensors import read_index

_REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<subfolder>[\w./-]+))?")
# Configurations, tokenizers, templates and weights; no pickles and no images.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def model_directory(
    path_or_repo: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    folders: Sequence[str] | None = None,
) -> Path:
    """Return a model's local directory, downloading it if necessary.

    Files in the `huggingface_hub` cache are used without a network request; missing ones are downloaded into it.
    A path that does not exist and can't be a repository name is returned as it is; reading it then fails.

    Args:
      path_or_repo: a path (or the name of a packaged model, see `find_model`), a repository "owner/name", or a folder
        of one, "owner/name:subfolder".
      revision: branch, tag or commit of the repository.
      token: access token for the hub; None uses the one from `hf auth login`.
      folders: the folders that are needed, such as "vae"; None needs the files at the top, or in the subfolder.

    Raises:
      FileNotFoundError: the directory, repository, revision or folder does not exist, or the hub can't be reached.
      PermissionError: the repository is gated, or the token is missing.
      UserError: the path is empty.
    """
    if not str(path_or_repo).strip():
        raise UserError("a model's path is empty: give a directory, or a repository on the Hugging Face hub")
    path = find_model(path_or_repo)
    found = _REPOSITORY.fullmatch(str(path_or_repo))
    if path.exists() or found is None:
        return path
    repo, subfolder = found["repo"], found["subfolder"]
    owner = Path(repo).parent
    if owner.is_dir():
        beside = ", ".join(sorted(entry.name for entry in owner.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"there is no directory {path_or_repo}, and {owner} is a local directory, not an owner on the Hugging"
            f" Face hub: check the path; {owner} holds {beside}"
        )
    parts = [subfolder] if subfolder else list(folders) if folders else [""]
    snapshot = _snapshot(repo, revision, token, parts)
    directory = snapshot / (subfolder or "")
    if not directory.is_dir():
        raise FileNotFoundError(f"the repository {repo} has no folder {subfolder}: check its page on the hub")
    return directory


def repository_of(path_or_repo: str | Path) -> str | None:
    """Return the "owner/name" of a repository or of a directory in the hub's cache; None for other directories."""
    path = Path(path_or_repo)
    if not path.exists():
        found = _REPOSITORY.fullmatch(str(path_or_repo))
        return found["repo"] if found else None
    cached = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{path.resolve()}/")
    return f"{cached[1]}/{cached[2]}" if cached else None


def _snapshot(repo: str, revision: str | None, token: str | bool | None, parts: Sequence[str]) -> Path:
    """Return the repository's directory in the cache, with all `parts` downloaded."""
    from huggingface_hub import errors, snapshot_download

    patterns = [f"{part}/{pattern}" if part else pattern for part in parts for pattern in _FILES]
    options: dict[str, Any] = {"revision": revision, "allow_patterns": [*patterns, "model_index.json"]}
    page = f"https://huggingface.co/{repo}"
    try:
        try:
            snapshot = Path(snapshot_download(repo, local_files_only=True, **options))
            if all(_is_whole(snapshot / part) for part in parts):
                return snapshot
        except errors.LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(repo, token=token, **options))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{repo} is gated: accept its licence at {page} and run `hf auth login`, or give a directory"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise FileNotFoundError(
            f"there is no directory {repo}, nor such a repository on the Hugging Face hub that you may read: check the"
            " name, or run `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{repo} has no revision {revision}: check it at {page}") from None
    except errors.LocalTokenNotFoundError:
        raise PermissionError("there is no Hugging Face token on this machine: run `hf auth login`") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"there is no directory {repo}, and the Hugging Face hub could not be reached"
            f" ({type(error.__cause__ or error).__name__}): check the path, or download the repository first"
        ) from None


def _is_whole(directory: Path) -> bool:
    """Whether part of a snapshot is complete: another program may have cached only some of the files."""
    if not directory.is_dir():
        return False
    indices = list(directory.glob("*.safetensors.index.json"))
    shards = [directory / name for index in indices for name in read_index(index).values()]
    if shards:
        return all(shard.exists() for shard in shards)
    return not (directory / "config.json").exists() or any(directory.glob("*.safetensors"))
