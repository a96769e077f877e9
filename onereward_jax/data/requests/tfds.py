"""Requests as a TFDS dataset of array_record files, written and read without TensorFlow."""

from pathlib import Path
from typing import Any


def tfds_directory(directory: Path) -> Path | None:
    return None


class StoredRequests:
    def __init__(self, directory: Path):
        self.directory = directory

    def __len__(self) -> int:
        return 0

    def name(self, index: int) -> str:
        return f"{self.directory}, record {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise IndexError(index)
