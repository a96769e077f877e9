"""Buckets of an object store, gs://BUCKET/PATH, beside local paths.

An object appears whole or not at all, is there for everyone once it was written, and has an MD5 of the store. There are
no directories, no renames and no locks. Credentials are found as Google's libraries find them; with
STORAGE_EMULATOR_HOST, and TENSORSTORE_GCS_HTTP_URL for the arrays of checkpoints, an emulator takes the store's place.
"""

import base64
import os
from typing import Any

from etils import epath

from onereward_jax.errors import UserError

_SCHEME = "gs://"


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is of a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def path(name: str | os.PathLike) -> epath.Path:
    """A local path, or one of a bucket.

    Raises:
      UserError: what reads buckets is not installed.
    """
    if is_bucket(name):
        _file_system()
    return epath.Path(name)


def listed(directory: epath.Path) -> dict[str, dict[str, Any]]:
    """{path below the directory: {"size": bytes, "md5": hexadecimal}} of all objects; composite ones have no MD5."""
    found = _file_system().find(os.fspath(directory), detail=True)
    prefix = os.fspath(directory).removeprefix(_SCHEME).rstrip("/") + "/"
    return {
        name.removeprefix(prefix): {"size": about["size"]}
        | ({"md5": base64.b64decode(about["md5Hash"]).hex()} if about.get("md5Hash") else {})
        for name, about in found.items()
        if name.startswith(prefix) and not name.endswith("/")
    }


def _file_system() -> Any:
    """What `etils.epath` uses for gs://, too."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # else epath takes TensorFlow, where that happens to be installed
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        raise UserError("a path in a bucket (gs://) needs gcsfs: pip install 'onereward-jax[gs]'") from None
    # Other processes and TensorStore write there as well: what a listing said a while ago is of no use.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)
