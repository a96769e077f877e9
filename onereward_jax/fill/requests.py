"""Requests to fill images, as the command line names them, and the files that their answers go to."""

from collections.abc import Sequence
from pathlib import Path

from onereward_jax.data.requests.layouts import Defaults, Found, listed
from onereward_jax.data.requests.record import BadRequest, Request
from onereward_jax.errors import UserError
from onereward_jax.images import reading


def read_requests(image: Path, mask: Path | None, inside_only: bool = False, **given: str | None) -> list[Found]:
    """The requests of an image, of a folder of images, or of a file: see docs/reference/requests.md.

    A folder's images have the masks of the same names in the folder `mask`, or all the one mask; without `mask`, it is
    read as a source of requests. A record may leave out what is `given`.

    Args:
      inside_only: a path in a file that leads out of the file's folder makes its record a bad one.
      given: `prompt`, `negative_prompt`, `task` and `extend`.

    Raises:
      OSError: the file or the folder can't be read.
      UserError: there is no request.
    """
    defaults = Defaults(mask=mask, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if image.suffix in (".jsonl", ".json") or (image.is_dir() and mask is None):
        requests = list(listed(image, defaults, inside_only))
        if not requests:
            raise UserError(
                f"{image} holds no request: give images ({', '.join(reading.SUFFIXES)}), or a record per line"
            )
        return requests
    if not image.is_dir():
        return [_request(image, mask, defaults)]
    files = reading.files_in(image)
    if not files:
        raise UserError(f"{image} holds no images ({', '.join(reading.SUFFIXES)}): give another folder")
    assert mask is not None
    if not mask.is_dir():
        return [_request(file, mask, defaults) for file in files]
    masks = {file.stem: file for file in reading.files_in(mask)}
    return [_request(file, masks.get(file.stem, mask / file.name), defaults) for file in files]


def _request(image: Path, mask: Path | None, given: Defaults) -> Request:
    task = given.task or ("image_extend" if given.extend else "image_fill")
    extend, negative = given.extend, given.negative_prompt
    return Request(str(image), image, mask, given.prompt, (task,), negative, extend=extend, where=str(image))


def prompt_of(request: Found) -> str:
    """The prompt of a request, after checking all that shows without its images.

    Raises:
      UserError: it is a bad one, or lacks its prompt or its mask.
    """
    if isinstance(request, BadRequest):
        raise UserError(request.error)
    if not request.has_mask:
        raise UserError("there are neither a mask nor sides to extend: give one of --mask and --extend")
    request.check()
    return request.text(request.tasks[0])


def output_files(requests: Sequence[Request], out: Path, number: int) -> list[list[Path]]:
    """The PNG files of each request's images: `out` itself, or in the folder `out` a file of the image's name."""
    taken: set[str] = set()
    files = []
    for request in requests:
        file = out
        if out.suffix != ".png":
            stem = name = (request.image if isinstance(request.image, Path) else Path(request.id)).stem
            number_of_stem = 1
            while name in taken:
                number_of_stem += 1
                name = f"{stem}-{number_of_stem}"
            taken.add(name)
            file = out / f"{name}.png"
        files.append([file] if number == 1 else [file.with_name(f"{file.stem}_{n}.png") for n in range(number)])
    return files
