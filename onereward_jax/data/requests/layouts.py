"""The forms in which requests lie on a disk, ours and other projects', all read here; see docs/reference/requests.md.

Each layout is a translation to the fields of our own, of which `_request` makes a `Request`. Nothing is decoded here.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onereward_jax.config.option import did_you_mean
from onereward_jax.data.manifest import Manifest
from onereward_jax.data.requests.record import ANY_TASK, BadRequest, Request
from onereward_jax.data.requests.run_lengths import RunLengths, run_lengths
from onereward_jax.data.requests.tfds import StoredRequests
from onereward_jax.data.tfds_files import dataset_directory
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import MAX_LINE, json_lines, parse_json, path_beside, read_bytes, read_text
from onereward_jax.images import reading
from onereward_jax.tasks import NEGATIVE_PROMPT

REQUESTS = "requests.jsonl"
METADATA = "metadata.jsonl"  # as in the `datasets` library's ImageFolder
FIELDS = ("id", "task", "prompt", "image", "mask", "negative_prompt", "target", "extend", "notes")
_PROMPTS = ("text", "caption", "prompt")  # names of the field in public data; the first that is present counts
_ROLES = {
    "image": ("image", "source", "input"),
    "mask": ("mask",),
    "target": ("target", "output", "ground_truth"),
}
_MAX_LIST = 2**30  # bytes of a JSON list of records
# Of OneTrainer: what the model sees and the mask, beside the image that it is to make.
_CONDITION, _MASK_LABEL = "-condlabel", "-masklabel"

Found = Request | BadRequest


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a record has that doesn't say."""

    prompt: str = ""
    negative_prompt: str = NEGATIVE_PROMPT
    task: str | None = None
    mask: Path | None = None
    extend: str | None = None


def listed(
    path: Path,
    defaults: Defaults = Defaults(),
    inside_only: bool = False,
    manifest: Manifest | None = None,
) -> Iterator[Found]:
    """List the records at a path without reading their images; what is no request gives a sentence.

    Args:
      path: a folder, a .jsonl file, a .json file with a list, or a TFDS directory.
      inside_only: a path that leads out of the folder, by a symbolic link too, makes a bad record.
      manifest: keeps the texts of a TFDS dataset, so that they are read once.

    Raises:
      OSError, UserError: the folder or the file can't be read.
    """
    if path.is_dir():
        for name in (REQUESTS, METADATA):
            if os.path.lexists(path / name):
                path /= name
                break
    if path.is_dir():
        stored = dataset_directory(path)
        if stored is None:
            found = _plain_folder(path, defaults, inside_only)
        else:
            found = _stored(StoredRequests(stored, manifest or Manifest()), defaults)
    elif path.suffix == ".jsonl":
        found = (_of_line(line.where, line.fields, path.parent, defaults, inside_only) for line in json_lines(path))
    elif path.suffix == ".json":
        found = _of_list(path, defaults, inside_only)
    else:
        raise UserError(f"{path} is neither a folder nor a .jsonl file: give one of them")
    yield from _with_ids(found)


def _with_ids(found: Iterator[Found]) -> Iterator[Found]:
    """Give requests without an id their image's name, numbered where it recurs; refuse an id that is there twice."""
    seen: set[str] = set()
    for item in found:
        if isinstance(item, BadRequest):
            yield item
            continue
        name, number = item.id or item.group, 1
        while not item.id and name in seen:
            number += 1
            name = f"{item.group}#{number}"
        if name in seen:
            yield BadRequest(item.where, f"id {shown(name)} is there twice: make ids unique")
            continue
        seen.add(name)
        yield dataclasses.replace(item, id=name)


# ------------------------------------------------------------------------------------------------------------ records


def _of_line(
    where: str, fields: Callable[[], Mapping[str, Any]], folder: Path, defaults: Defaults, inside_only: bool
) -> Found:
    try:
        return _request(where, _translated(fields(), folder), folder, defaults, inside_only)
    except UserError as error:
        return BadRequest(where, str(error))


def _of_list(path: Path, defaults: Defaults, inside_only: bool) -> Iterator[Found]:
    items = parse_json(read_bytes(path, _MAX_LIST))
    if not isinstance(items, list):
        raise UserError(f"{path} is no list of records: give one, or a .jsonl file with a record per line")
    for number, item in enumerate(items):
        where = f"{path}, record {number}"
        if isinstance(item, dict):
            yield _of_line(where, item.copy, path.parent, defaults, inside_only)
        else:
            yield BadRequest(where, f"it is {type(item).__name__} and no object: give objects")


def _stored(records: StoredRequests, defaults: Defaults) -> Iterator[Found]:
    for index in range(len(records)):
        where = records.name(index)
        try:
            yield _made(where, records.fields(index), defaults)
        except UserError as error:
            yield BadRequest(where, str(error))


def _request(where: str, fields: Mapping[str, Any], folder: Path, defaults: Defaults, inside_only: bool) -> Request:
    """Make a request of our fields, paths being relative to a folder.

    Raises:
      UserError: they are none.
    """
    values = dict(fields)
    for name in fields:
        if name not in FIELDS:
            raise UserError(
                f"{shown(name)} is not a field of a request{did_you_mean(name, FIELDS) or ': put it into notes'}"
            )
    if values.get("image") in (None, ""):
        raise UserError("it names no image: write its path into image")
    for name in ("image", "mask", "target"):
        value = values.get(name)
        if isinstance(value, str) and value:
            values[name] = path_beside(folder, value, inside_only)
        elif not isinstance(value, RunLengths) and value not in (None, ""):
            raise UserError(f"{name} is {shown(value)}: write a path")
    return dataclasses.replace(_made(where, values, defaults), group=fields["image"])


def _made(where: str, values: Mapping[str, Any], defaults: Defaults) -> Request:
    """Make a request of fields whose images are pictures."""
    for name in ("id", "task", "prompt", "negative_prompt", "extend"):
        if not isinstance(values.get(name), str | None):
            raise UserError(f"{name} is {shown(values[name])}: write a text")
    if not isinstance(values.get("notes"), Mapping | None):
        raise UserError(f"notes is {shown(values['notes'])}: write an object")
    if values.get("image") is None:
        raise UserError("it has no image: give one")
    mask, extend = values.get("mask") or None, values.get("extend") or None
    if mask is None and extend is None:
        mask, extend = defaults.mask, defaults.extend
    task, prompt = values.get("task") or None, (values.get("prompt") or "").strip()
    if not prompt and task != "object_removal":  # whose fixed prompt a common one would not replace
        prompt = defaults.prompt
    task = task or defaults.task
    if task is None:
        tasks = _unnamed_tasks(bool(prompt), mask is not None, extend is not None)
    else:
        tasks = (task,)
    negative = values.get("negative_prompt")
    return Request(
        id=values.get("id") or "",
        image=values["image"],
        mask=mask,
        prompt=prompt,
        tasks=tasks,
        negative_prompt=defaults.negative_prompt if negative is None else negative,
        target=values.get("target") or None,
        extend=extend,
        notes=values.get("notes") or {},
        group=values.get("group") or values.get("id") or "",
        where=where,
    )


def _unnamed_tasks(has_prompt: bool, has_mask: bool, has_sides: bool) -> tuple[str, ...]:
    """Tasks of a request that names none. Without prompt and mask only an extension is left, whose prompt is fixed."""
    if has_mask:
        return ("image_fill",)
    return ("image_extend",) if has_sides or not has_prompt else ANY_TASK


# ------------------------------------------------------------------------------------------------ other projects' names


def _translated(fields: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Give fields our names, if they are another project's.

    Raises:
      UserError: they are damaged.
    """
    if "file_name" in fields:
        return _image_folder(fields, folder)
    if "media" in fields:
        return _media(fields)
    if "gt_image_path" in fields:
        return _ground_truth(fields)
    return fields


def _image_folder(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Hugging Face's ImageFolder: `file_name`, and columns of any name."""
    if not isinstance(fields["file_name"], str):
        raise UserError("it names no image: write its path into file_name")
    known = {name: fields[name] for name in FIELDS if name in fields and name not in ("image", "notes", *_PROMPTS)}
    image = path_beside(folder, fields["file_name"])
    beside = None if known.get("mask") else _mask_beside(image)
    mask = {} if beside is None else {"mask": os.path.join(os.path.dirname(fields["file_name"]), beside)}
    return {**known, "image": fields["file_name"], "prompt": _first_text(fields, _PROMPTS), **mask}


def _media(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A list `media` of objects with a `role` and a `path`."""
    media = fields["media"]
    if not isinstance(media, list) or not all(isinstance(item, Mapping) for item in media):
        raise UserError(f"media is {shown(media)}: give a list of objects with role and path")
    found: dict[str, Any] = {}
    for item in media:
        for name, roles in _ROLES.items():
            if item.get("role") in roles:
                if name in found:
                    raise UserError(f"media has two of role {name}: give one")
                found[name] = next((item[key] for key in ("path", "file_name", "image") if item.get(key)), None)
    known = {name: fields[name] for name in ("id", "task", "negative_prompt", "notes") if name in fields}
    return {**known, "prompt": _first_text(fields, ("prompt", "text", "caption", "instruction")), **found}


def _ground_truth(fields: Mapping[str, Any]) -> dict[str, Any]:
    """BrushData as Follow-Your-Preference lists it: an image, right under its segmentation as its caption says.

    An image may have several; `image_id`, which they share, is kept in the notes.
    """
    image = fields["gt_image_path"]
    segmentation, mask = fields.get("segmentation"), fields.get("mask_path")
    return {
        "task": fields.get("task"),
        "prompt": _first_text(fields, ("caption", "prompt", "text")),
        "image": image,
        "mask": mask if segmentation is None else run_lengths(segmentation),
        "target": image,
        "notes": {"image_id": fields["image_id"]} if "image_id" in fields else None,
    }


def _first_text(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if not isinstance(fields.get(name), str | None):
            raise UserError(f"{name} is {shown(fields[name])}: write a text")
    return next((fields[name] for name in names if fields.get(name)), "")


# -------------------------------------------------------------------------------------------------------- plain folders


def _plain_folder(folder: Path, defaults: Defaults, inside_only: bool) -> Iterator[Found]:
    """Images with their texts and masks beside them: see `_beside`."""
    files = reading.files_in(folder, recursive=True)
    given = {file: found for file in files if not _is_part(file, folder) and (found := _beside(file))}
    parts = {part for found in given.values() for part in found.values()}
    for file in files:
        if _is_part(file, folder) or file in parts:
            continue
        note, beside = file.with_suffix(".txt"), given.get(file, {})
        pictures = {"image": file, **({"image": beside["image"], "target": file} if "image" in beside else {})}
        pictures |= {"mask": beside["mask"]} if "mask" in beside else {}
        try:
            has_note = os.path.lexists(note)
            for part in (*pictures.values(), *([note] if has_note else [])):
                path_beside(folder, str(part.relative_to(folder)), inside_only)
            text = read_text(note, MAX_LINE).strip() if has_note else ""
        except OSError as error:
            yield BadRequest(str(file), f"{error.filename} can't be opened ({error.strerror}): check the path")
        except UserError as error:
            yield BadRequest(str(file), str(error))
        else:
            values = {**pictures, "prompt": text, "group": str(file.relative_to(folder))}
            yield _made(str(file), values, defaults)


def _is_part(file: Path, folder: Path) -> bool:
    """Whether a file is beside another by its name alone."""
    return (file.parent.name == "masks" and file.parent != folder) or file.stem.endswith((_CONDITION, _MASK_LABEL))


def _beside(file: Path) -> dict[str, Path]:
    """Find an image's mask, and the image that the model sees in its place, which makes this one the target."""
    found: dict[str, Path] = {}
    for suffix in reading.SUFFIXES:
        if os.path.lexists(condition := file.with_name(f"{file.stem}{_CONDITION}{suffix}")):
            found.setdefault("image", condition)
    if (mask := _mask_beside(file)) is not None:
        found["mask"] = file.parent / mask
    return found


def _mask_beside(image: Path) -> str | None:
    """Find NAME_mask.*, masks/NAME.* or NAME-masklabel.*, relative to the image's folder."""
    for suffix in reading.SUFFIXES:
        for name in (
            f"{image.stem}_mask{suffix}",
            os.path.join("masks", f"{image.stem}{suffix}"),
            f"{image.stem}{_MASK_LABEL}{suffix}",
        ):
            if os.path.lexists(image.parent / name):
                return name
    return None
