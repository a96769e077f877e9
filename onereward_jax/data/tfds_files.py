"""TFDS datasets of array_record files, written and read without TensorFlow.

Images are stored as the bytes of their files: nothing is re-encoded, and the reader decodes them.
Needs the package tensorflow-datasets (the extra `tfds`).
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import read_json

SPLIT = "train"
_INFO, _FEATURES = "dataset_info.json", "features.json"


def library(noun: str) -> Any:
    """Import tensorflow-datasets.

    Args:
      noun: of the data, for the error message.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(
            f"{noun} in TFDS form need the package tensorflow-datasets: install onereward-jax[tfds], or use the"
            " folder form"
        ) from None
    return tensorflow_datasets


def builder_class(title: str, version: str, features: Any, example_of: Callable[[Any], dict[str, Any]]) -> type:
    """Make a TFDS builder class `Builder(records, data_dir=..., file_format="array_record")`.

    Args:
      title: name of the dataset.
      features: of an example.
      example_of: a record -> its example.

    Returns:
      The class; `records` is a function that returns the records to write. TFDS registers it: make it once.
    """
    tfds: Any = library(title)

    class Builder(tfds.core.GeneratorBasedBuilder):  # type: ignore[name-defined]
        """Records of OneReward in JAX."""

        name = title
        VERSION = tfds.core.Version(version)

        def __init__(self, records: Callable[[], Iterable[Any]], **options: Any):
            self._records = records
            super().__init__(**options)

        def _info(self) -> Any:
            # Keep the records' order, so that converting back and forth changes nothing.
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict]]:
            for number, record in enumerate(self._records()):
                yield number, example_of(record)

    return Builder


def write_dataset(directory: Path, builder: Any, records: Iterable[Any]) -> None:
    """Write directory/NAME/VERSION/ atomically.

    Args:
      builder: class of `builder_class`.
    """
    library(builder.name).disable_progress_bar()
    with atomic_directory(directory) as partial, _temporary_files_in(partial / "temporary"):
        # TFDS prints progress to stdout, which is for the command's own output.
        with contextlib.redirect_stdout(io.StringIO()):
            builder(lambda: records, data_dir=str(partial), file_format="array_record").download_and_prepare()
        shutil.rmtree(partial / "downloads", ignore_errors=True)


@contextlib.contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """Let `tempfile` work in a new directory and remove it: TFDS leaves its own behind in the system's.

    If the process is killed, they are below the partial directory, which the next one removes.
    """
    directory.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(directory, ignore_errors=True)


def dataset_directory(directory: Path) -> Path | None:
    """Find a TFDS dataset in `directory`; None if there is none."""
    for path in (directory, *sorted(directory.glob("*/*"), reverse=True)):
        if (path / _INFO).is_file():
            return path
    return None


def open_dataset(directory: Path, noun: str, again: str) -> Any:
    """Open a TFDS dataset as a random-access sequence of examples.

    Args:
      directory: holds dataset_info.json.
      again: what to do if it is damaged.

    Raises:
      UserError: TFDS can't open it as a dataset of array_record files.
    """
    tfds = library(noun)
    read_json(directory / _INFO, again)
    _check_classes(directory / _FEATURES, read_json(directory / _FEATURES, again))
    try:
        source = tfds.builder_from_directory(str(directory)).as_data_source(SPLIT)
        len(source)
    except Exception as error:  # of damaged metadata TFDS raises anything, from AttributeError to its own errors
        first = str(error).partition("\n")[0]
        raise UserError(f"TFDS can't open {directory} ({first or type(error).__name__}): {again}") from None
    return source


def _check_classes(path: Path, value: Any) -> None:
    """Check the classes that features.json names, of which TFDS imports the modules, whichever they are.

    Raises:
      UserError: it names a module that is not one of TFDS's features.
    """
    if isinstance(value, str) and "." in value and not value.startswith("tensorflow_datasets.core.features."):
        raise UserError(f"{path} names {shown(value)}, which is no part of TFDS: don't trust this dataset")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_classes(path, child)
