"""Where a model's files are: in a directory, or in a repository of the Hugging Face hub."""

import re
from pathlib import Path

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Configurations, tokenizers, templates and weights; no pickles and no pictures.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


def local_directory(path_or_repo: str | Path) -> Path:
    """The directory of that path, or of a repository "owner/name": downloaded, or as the cache of `huggingface_hub`
    has it.

    A path that does not exist and is no repository's name comes back as it is: who reads it says what is missing.

    Raises:
      FileNotFoundError: there is neither such a directory nor such a repository, or the hub is out of reach.
      PermissionError: the repository is gated.
    """
    path = Path(path_or_repo)
    if path.exists() or not _REPOSITORY.fullmatch(str(path_or_repo)):
        return path
    from huggingface_hub import errors, snapshot_download

    repo = str(path_or_repo)
    try:
        return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo} and run `hf auth login`, or give a"
            " directory"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"there is no directory {repo}, nor such a repository on the Hugging Face hub: check it"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"there is no directory {repo}, and the Hugging Face hub could not be asked for it"
            f" ({type(error.__cause__ or error).__name__}): check the path, or download the repository first"
        ) from None
