"""Choose images to collect candidates for: near-duplicates left out, and drawn evenly over clusters of CLIP's space."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from onereward_jax.candidates.clusters import (
    Rows,
    duplicates,
    even_order,
    fit_centres,
    members_of,
    nearest_centres,
)
from onereward_jax.candidates.embeddings import Image, KeptEmbeddings
from onereward_jax.candidates.prompts import FILE_NOTE
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.manifest import Manifest
from onereward_jax.data.requests.layouts import Defaults, listed
from onereward_jax.data.requests.read import check_there, checked_request
from onereward_jax.data.requests.record import BadRequest, Request, read_image
from onereward_jax.data.requests.write import write_requests
from onereward_jax.errors import UserError
from onereward_jax.images.grid import image_grid, text_cell, write_png
from onereward_jax.tasks import TASKS
from onereward_jax.weights.clip_encoder import ClipEncoder

CLUSTER_NOTE = "cluster"  # in the notes of a written request: its number
_BATCH = 32  # images that are encoded at once
_SIDE, _COLUMNS, _MOST_ROWS = 96, 10, 100  # of the sheet: pixels, images of a cluster, clusters


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is to be chosen.

    Attributes:
      count: images; None takes all that are left.
      clusters: that are drawn from evenly.
      duplicates: an image whose cosine with an earlier one is above it is left out; 1 leaves none out.
      seed: of clusters and draws.
      bad_share: share of the requests that may be bad.
      inside_only: refuse paths that lead out of the source's folder.
    """

    count: int | None = None
    clusters: int = 100
    duplicates: float = 0.95
    seed: int = 0
    bad_share: float = 0.1
    inside_only: bool = False


def select(source: Path, clip: str, keep: Path, out: Path, selection: Selection, sheet: Path | None = None) -> str:
    """Write the requests of chosen images, in the order in which they were drawn.

    The first of them are an even draw too. An image that several requests share is one: all of them are taken, or none.
    Their notes say the name of the image in the source, "file", and the number of its cluster, "cluster".

    Args:
      source: requests, see `data.requests.layouts.listed`.
      clip: a CLIP model, see `weights.clip_encoder.ClipEncoder`.
      keep: directory of the embeddings, see `KeptEmbeddings`.
      out: directory of the chosen requests, see `atomic_files.check_output`.
      sheet: PNG file with a row for each cluster: its images nearest to the centre.

    Returns:
      a sentence with the numbers.

    Raises:
      FileNotFoundError, UserError: something is missing or wrong, or too many requests are bad.
    """
    check_there(source)
    encoder = ClipEncoder(clip, _BATCH)
    manifest = Manifest.of(source)
    skipped = Skipped("requests", str(source), selection.bad_share)
    groups, total = _groups(source, selection.inside_only, manifest, skipped)
    images = [Image(name, members[0].image) for name, members in groups.items()]
    vectors = KeptEmbeddings(keep, encoder).of(images, lambda _, sentence: skipped.add(sentence))
    skipped.end(total)  # before hours of clustering

    left = np.flatnonzero(~np.isnan(vectors[:, 0]))
    if not len(left):
        raise UserError(f"no image in {source} can be read: give others")
    good = len(left)
    if selection.duplicates < 1:
        left = left[~duplicates(Rows(vectors, left), selection.duplicates, selection.seed)]
    centres = fit_centres(Rows(vectors, left), selection.clusters, selection.seed)
    labels = nearest_centres(Rows(vectors, left), centres)
    order = even_order(labels, [images[row].name for row in left], selection.seed)

    cluster_of = dict(zip(left.tolist(), labels.tolist(), strict=True))
    chosen = _Chosen(Counter(), [])
    drawn = ((cluster_of[int(left[row])], groups[images[left[row]].name]) for row in order)
    write_requests(out, chosen.take(drawn, selection.count, manifest, skipped, total), "folder")
    manifest.save()
    if sheet is not None:
        write_png(sheet, _sheet(images, vectors, left, labels, centres, chosen.of_cluster))
    if selection.count is not None and sum(chosen.of_cluster.values()) < selection.count:
        print(f"there are only {sum(chosen.of_cluster.values())} different images to choose from", file=sys.stderr)
    return (
        f"{sum(chosen.of_cluster.values())} of {len(images)} images, drawn evenly from {len(set(labels.tolist()))}"
        f" clusters; {good - len(left)} near-duplicates left out"
    )


def _groups(
    source: Path, inside_only: bool, manifest: Manifest, skipped: Skipped
) -> tuple[dict[str, list[Request]], int]:
    """{name of an image: its requests}, without what is none, and the number of all records."""
    groups: dict[str, list[Request]] = {}
    total = 0
    for item in listed(source, Defaults(), inside_only, manifest):
        total += 1
        if isinstance(item, BadRequest):
            skipped.add(str(item))
        else:
            groups.setdefault(item.group or item.id, []).append(item)
    if not total:
        raise UserError(f"{source} holds no requests: give a folder of images, or requests.jsonl")
    return groups, total


@dataclasses.dataclass
class _Chosen:
    """What was drawn.

    Attributes:
      of_cluster: {cluster: number of images}.
    """

    of_cluster: Counter[int]
    _requests: list[Request]

    def take(
        self,
        drawn: Iterable[tuple[int, Sequence[Request]]],
        count: int | None,
        manifest: Manifest,
        skipped: Skipped,
        total: int,
    ) -> Iterator[Request]:
        """Yield the requests of the first `count` images that turn out to be good with masks and targets.

        Args:
          drawn: cluster and requests of an image, in the order in which they are tried.
          total: number of all requests.

        Raises:
          UserError: too many are bad, or all.
        """
        for cluster, requests in drawn:
            if count is not None and sum(self.of_cluster.values()) >= count:
                break
            found = [checked_request(request, TASKS, manifest) for request in requests]
            good = [request for request in found if isinstance(request, Request)]
            for bad in found:
                if isinstance(bad, BadRequest):
                    skipped.add(str(bad))
            for request in good:
                notes = {FILE_NOTE: request.group, **request.notes, CLUSTER_NOTE: cluster}
                yield dataclasses.replace(request, notes=notes)
            self.of_cluster[cluster] += bool(good)
        skipped.end(total)
        if not sum(self.of_cluster.values()):
            raise UserError("no image that was drawn has a good request, see above: correct them")


def _sheet(
    images: Sequence[Image],
    vectors: np.ndarray,
    left: np.ndarray,
    labels: np.ndarray,
    centres: np.ndarray,
    drawn: Counter[int],
) -> np.ndarray:
    """Draw a row for each cluster, largest first: its number and sizes, then its images nearest to the centre."""
    rows = []
    clusters = sorted(members_of(labels), key=len, reverse=True)
    places = np.unique(np.linspace(0, len(clusters) - 1, min(len(clusters), _MOST_ROWS)).round().astype(int))
    for members in (clusters[place] for place in places):
        cluster = int(labels[members[0]])
        closeness = np.asarray(vectors[left[members]], np.float32) @ centres[cluster]
        nearest = left[members[np.argsort(-closeness, kind="stable")[:_COLUMNS]]]
        words = (f"cluster {cluster}", f"{len(members)} images", f"{drawn[cluster]} drawn")
        rows.append([text_cell(words, _SIDE), *(_small(images[row]) for row in nearest)])
    return image_grid(rows)


def _small(image: Image) -> np.ndarray:
    small = PillowImage.fromarray(read_image(image.file))
    small.thumbnail((_SIDE, _SIDE), PillowImage.Resampling.LANCZOS)
    return np.asarray(small)
