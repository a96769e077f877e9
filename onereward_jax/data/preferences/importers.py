"""Reads the annotation files of public preference sets as records.

Their images were generated from text or by an editing instruction, so the records have no mask, and the caller chooses
the task. An overall ranking counts as one dimension, by default aesthetics.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onereward_jax.data.preferences.label_studio import Key, fields_of_task
from onereward_jax.data.preferences.record import MAX_CANDIDATES, BadRecord, Record, record_of
from onereward_jax.errors import UserError, one_line, shown
from onereward_jax.given_files import json_lines, open_file, parse_json, path_beside, read_bytes
from onereward_jax.images.decoding import MAX_BYTES
from onereward_jax.tasks import dimensions_of

OVERALL = "aesthetics"
_MAX_ANNOTATIONS = 2**31  # bytes of a set's JSON, which is read at once
Entry = Mapping[str, Any]
Fields = dict[str, Any]


class Layout(NamedTuple):
    """The layout of a public set.

    Attributes:
      fields: (entry or entries of one record, dimension of an overall preference) -> fields of a record; `task`, and
        `id` if missing, are added.
      group: the field that entries of one record share; None if each entry is a record.
      listed: makes a list of entries of a JSON object; None if the file holds a list.
      key: directory of the images -> what restores fields that the entries leave out.
    """

    fields: Callable[[Any, str], Fields]
    group: str | None = None
    listed: Callable[[Mapping[str, Any]], list[Entry]] | None = None
    key: Callable[[Path], Key] | None = None


class Imported:
    """Records in an annotation file of a public set, see `dataset.Records`."""

    def __init__(
        self,
        layout: str,
        file: Path,
        images: str | Path | None = None,
        task: str = "image_fill",
        dimension: str = "",
        inside_only: bool = False,
    ):
        """
        Args:
          layout: one of `LAYOUTS`.
          file: .json, .jsonl or .parquet, as published.
          images: directory of the images; None uses the file's directory.
          task: one of `tasks.TASKS`, for all records.
          dimension: dimension of the overall ranking; `OVERALL` if empty.
          inside_only: a record is bad if the path of an image leads out of the images' directory.

        Raises:
          OSError, UserError: the file can't be read, or the task is not judged on the dimension.
        """
        dimension = dimension or (OVERALL if OVERALL in dimensions_of(task) else dimensions_of(task)[0])
        if dimension not in dimensions_of(task):
            raise UserError(f"{task} is not judged on {dimension}: choose one of {', '.join(dimensions_of(task))}")
        self.directory = file
        self._layout, self._task, self._dimension = LAYOUTS[layout], task, dimension
        self._images, self._inside_only = Path(images) if images else file.parent, inside_only
        self._key = self._layout.key(self._images) if self._layout.key else None
        entries = _entries(file, self._layout.listed)
        group = self._layout.group
        if group is not None and (not entries or any(group in entry for entry in entries if isinstance(entry, dict))):
            groups: dict[Any, list[tuple[int, Any]]] = {}
            for number, entry in enumerate(entries):
                key = entry.get(group) if isinstance(entry, dict) else None
                # What names no group is a bad record of its own.
                key = (key,) if isinstance(key, str | int) else number
                groups.setdefault(key, []).append((number, entry))
            self._entries: list[tuple[int, Any]] = [
                (members[0][0], [entry for _, entry in members]) for members in groups.values()
            ]
        else:
            self._entries = list(enumerate(entries))

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Say where the record is, for messages."""
        return f"{self.directory}, entry {self._entries[index][0]}"

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
          BadRecord: the entry does not have the layout, or an image is missing.
        """
        number, entry = self._entries[index]
        where = self.name(index)
        try:
            for one in entry if isinstance(entry, list) else [entry]:
                if isinstance(one, UserError):
                    raise one
            fields = self._layout.fields(entry, self._dimension)
            fields = self._key.restored(fields) if self._key else fields
        except UserError as error:
            raise BadRecord(f"{where}: {error}") from None
        # The functions of the layouts read an entry as it should be; one that isn't raises these.
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BadRecord(f"{where}: does not have this layout ({error!r}): choose another --layout") from None
        fields = {"id": str(number), "task": self._task, **fields}
        fields["votes"] = [vote for vote in fields["votes"] if vote["dimension"] in dimensions_of(fields["task"])]
        return record_of(fields, where, self._read)

    def _read(self, name: str, value: Any) -> bytes:
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):  # in parquet, beside its path
            return value["bytes"]
        return read_bytes(path_beside(self._images, value, self._inside_only), MAX_BYTES)


def _entries(file: Path, listed: Callable[[Mapping[str, Any]], list[Entry]] | None = None) -> list[Entry | UserError]:
    """Read the objects of an annotation file; what is none is an error in its place."""
    if file.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise UserError(
                f"reading {file} needs the package pyarrow: install onereward-jax[tfds], or give the set's JSON"
            ) from None
        with open_file(file) as opened:
            try:
                return parquet.read_table(opened).to_pylist()
            except Exception as error:  # of a damaged file pyarrow raises its own errors, OSError, OverflowError, ...
                raise UserError(f"{file} can't be read ({one_line(str(error))}): download it again") from None
    if file.suffix == ".jsonl":
        return [_fields_or_error(line.fields) for line in json_lines(file)]
    try:
        entries = parse_json(read_bytes(file, _MAX_ANNOTATIONS))
    except UserError as error:
        raise (
            error if str(file) in str(error) else UserError(f"{file} can't be read, {error}: download it again")
        ) from None
    if isinstance(entries, Mapping) and listed is not None:
        try:
            entries = listed(entries)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} does not have this layout ({error!r}): choose another --layout") from None
    if not isinstance(entries, list):
        raise UserError(f"{file} is not a list of objects: give the set's annotation file")
    no_object = UserError("it is no object: download the file again")
    return [entry if isinstance(entry, dict) else no_object for entry in entries]


def _fields_or_error(fields: Callable[[], Entry]) -> Entry | UserError:
    try:
        return fields()
    except UserError as error:
        return error


def _votes(
    ranks: Sequence[float], candidates: int, dimension: str, annotator: str, higher_is_better: bool = False
) -> list[Fields]:
    """Make a vote for every two candidates with different ranks; lower is better unless `higher_is_better`.

    Raises:
      UserError: there is not one number for each candidate.
    """
    numbers = [rank for rank in ranks if isinstance(rank, int | float) and not isinstance(rank, bool)]
    if len(numbers) != len(ranks) or not all(abs(number) < math.inf for number in numbers):
        raise UserError(f"it ranks images by {shown(ranks)}: give a number for each")
    if len(ranks) != candidates:
        raise UserError(f"it ranks {len(ranks)} of {candidates} images: give a number for each")
    if candidates > MAX_CANDIDATES:  # there is a vote for every two
        raise UserError(f"it has {candidates} images: give at most {MAX_CANDIDATES}")
    values = [-rank for rank in ranks] if higher_is_better else list(ranks)
    return [
        {"dimension": dimension, "annotator": annotator, "best": best, "worst": worst}
        for best in range(len(values))
        for worst in range(len(values))
        if values[best] < values[worst]
    ]


def _notes(entry: Entry, known: Iterable[str]) -> Fields:
    return {name: value for name, value in entry.items() if name not in known and value is not None}


# ----------------------------------------------------------------------------------------------------- public sets


def _image_reward(entry: Any, dimension: str) -> Fields:
    """Read ImageReward, where lower ranks are better.

    Two layouts: data/test.json of github.com/THUDM/ImageReward, one entry per prompt with `generations` and `ranking`
    (as train/src/rank_pair_dataset.py there reads it); and ImageRewardDB (huggingface.co/datasets/THUDM/ImageRewardDB),
    one entry per image, in JSON or metadata-*.parquet, with `prompt_id`, `image_path`, `rank`, and ratings where higher
    is better: `image_text_alignment_rating` is text alignment, `fidelity_rating` ("true to the shape and
    characteristics that the object should have") is structure.
    """
    if isinstance(entry, Mapping):
        candidates = [{"image": path} for path in entry["generations"]]
        votes = _votes(entry["ranking"], len(candidates), dimension, "ImageReward")
        return {"id": entry["id"], "prompt": entry["prompt"], "candidates": candidates, "votes": votes}
    first = entry[0]
    votes = _votes([image["rank"] for image in entry], len(entry), dimension, "ImageReward")
    for rating, rated in (("image_text_alignment_rating", "text_alignment"), ("fidelity_rating", "structure")):
        if rated != dimension and all(image.get(rating) is not None for image in entry):
            ratings = [image[rating] for image in entry]
            votes += _votes(ratings, len(entry), rated, "ImageReward", higher_is_better=True)
    return {
        "id": str(first["prompt_id"]),
        "prompt": first["prompt"],
        "candidates": [{"image": image["image_path"]} for image in entry],
        "votes": votes,
        "notes": _notes({"classification": first.get("classification")}, ()),
    }


def _hpd_v2(entry: Entry, dimension: str) -> Fields:
    """Read HPD v2, described in github.com/tgxs002/HPSv2 (README, "Human Preference Dataset v2").

    train.json has two images in `file_path` (`image_path` in some copies), `human_preference` with 1 for the
    preferred one, and `user_hash`. test.json has `image_path`, `rank` averaged over annotators, and each annotator's
    ranks in `raw_annotation`; lower ranks are better.
    """
    paths = entry["file_path"] if "file_path" in entry else entry["image_path"]
    fields: Fields = {"prompt": entry["prompt"], "candidates": [{"image": path} for path in paths]}
    if "human_preference" in entry:
        user = str(entry.get("user_hash", "HPDv2"))
        fields["votes"] = _votes(entry["human_preference"], len(paths), dimension, user, higher_is_better=True)
    elif raw := entry.get("raw_annotation") or entry.get("raw_annotations"):
        fields["votes"] = [
            vote
            for one in raw
            for vote in _votes(one["rank"], len(paths), dimension, str(one.get("user_hash", "HPDv2")))
        ]
    else:
        fields["votes"] = _votes(entry["rank"], len(paths), dimension, "HPDv2")
    return fields


def _hpd_v3(entry: Entry, dimension: str) -> Fields:
    """Read HPD v3 (huggingface.co/datasets/MizzenAI/HPDv3, read by github.com/MizzenAI/HPSv3).

    `path1` is preferred to `path2`; `choice_dist`, the annotators for either, `confidence` and the generators are kept.
    """
    return {
        "prompt": entry["prompt"],
        "candidates": [
            {"image": entry[f"path{n}"], "sampling": _notes({"model": entry.get(f"model{n}")}, ())} for n in (1, 2)
        ],
        "votes": _choice(entry, dimension, "HPDv3"),
        "notes": _notes(entry, ("prompt", "path1", "path2", "model1", "model2")),
    }


def _choice(entry: Entry, dimension: str, annotator: str) -> list[Fields]:
    return [{"dimension": dimension, "annotator": annotator, "best": 0, "worst": 1}]


def _edit_reward(entry: Entry, dimension: str) -> Fields:
    """Read EditReward (huggingface.co/datasets/TIGER-Lab/EditReward-Data, layout in EditReward/TRAIN_README.md of
    github.com/TIGER-AI-Lab/EditReward).

    `path_src` was edited by the instruction `prompt`; `path1` is preferred to `path2` unless `tie_case`. Two dimensions
    have scores, higher is better: instruction following (`dim1`) is text alignment, visual quality (`dim2`) is
    structure; the choice between the two images is the overall preference.
    """
    votes = [] if entry.get("tie_case") else _choice(entry, dimension, "EditReward")
    for number, rated in ((1, "text_alignment"), (2, "structure")):
        scores = [entry.get(f"model{n}_dim{number}_score") for n in (1, 2)]
        if rated != dimension and None not in scores:
            votes += _votes(scores, 2, rated, "EditReward", higher_is_better=True)  # type: ignore[arg-type]
    return {
        "prompt": entry["prompt"],
        "image": entry["path_src"],
        "candidates": [
            {"image": entry[f"path{n}"], "sampling": _notes({"model": entry.get(f"model{n}")}, ())} for n in (1, 2)
        ],
        "votes": votes,
        "notes": _notes(entry, ("prompt", "path_src", "path1", "path2", "model1", "model2")),
    }


def _edit_reward_bench(entry: Entry, dimension: str) -> Fields:
    """Read EditReward-Bench (huggingface.co/datasets/TIGER-Lab/EditReward-Bench), whose parquet files hold the images.

    As EditReward/evaluate/inference_*pair_hf.py of github.com/TIGER-AI-Lab/EditReward read it: a row compares
    `candidate_1` and `candidate_2`, edits of `source_image` by `instruction`; `comparison_type`, such as "BvsC", says
    which letters of `ranking`, such as "C>B" or, of two, "A=B", they are.
    """
    first, _, second = str(entry.get("comparison_type") or "AvsB").partition("vs")
    ranking = entry["ranking"]
    best = [f"{first}>{second}", f"{second}>{first}", f"{first}={second}"].index(ranking)
    ends = (None, None) if best == 2 else (best, 1 - best)
    known = ("id", "instruction", "source_image", "candidate_1", "candidate_2", "model_1", "model_2")
    return {
        "id": f"{entry['dataset']}/{entry['id']}/{first}vs{second}",
        "prompt": entry["instruction"],
        "image": entry["source_image"],
        "candidates": [
            {"image": entry[f"candidate_{n}"], "sampling": _notes({"model": entry.get(f"model_{n}")}, ())}
            for n in (1, 2)
        ],
        "votes": [{"dimension": dimension, "annotator": "EditReward-Bench", "best": ends[0], "worst": ends[1]}],
        "notes": _notes(entry, known),
    }


def _pref_paint(entries: Sequence[Entry], dimension: str) -> Fields:
    """Read PrefPaint, as InpaintRewardDataset.py of github.com/Kenkenzaii/PrefPaint reads its annotation files.

    The JSON object has {name of an image: [score, rank]}, or these objects by the name of the source image; lower ranks
    are better. Images are inpaint/<name>.png, and the sources, their masks painted over,
    masks_color/<source>_mask_color.png. Nothing says what the images should show.
    """
    source = entries[0]["source"]
    return {
        "id": source,
        "prompt": "",
        "image": f"masks_color/{source}_mask_color.png",
        "candidates": [{"image": f"inpaint/{entry['name']}.png"} for entry in entries],
        "votes": _votes([entry["rank"] for entry in entries], len(entries), dimension, "PrefPaint"),
        "notes": {"scores": [entry["score"] for entry in entries]},
    }


def _pref_paint_entries(annotations: Mapping[str, Any]) -> list[Entry]:
    entries: list[Entry] = []
    for key, value in annotations.items():
        for name, (score, rank, *_) in value.items() if isinstance(value, Mapping) else [(key, value)]:
            entries.append({"source": name.rsplit("_", 1)[0], "name": name, "score": score, "rank": rank})
    return entries


LAYOUTS: Mapping[str, Layout] = {
    "image_reward": Layout(_image_reward, group="prompt_id"),
    "hpd_v2": Layout(_hpd_v2),
    "hpd_v3": Layout(_hpd_v3),
    "edit_reward": Layout(_edit_reward),
    "edit_reward_bench": Layout(_edit_reward_bench),
    "pref_paint": Layout(_pref_paint, group="source", listed=_pref_paint_entries),
    "label_studio": Layout(fields_of_task, key=Key),
}
