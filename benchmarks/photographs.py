"""Requests and preference data of photographs that are none of the proving ground's, for `benchmarks/full_width.py`.

The photographs lie in scikit-image and matplotlib, and nothing is downloaded: an officer's portrait, a field of
galaxies, a printed page, a cell in saline. Crops of them have odd sizes and three aspects; one is stored lying, with
an EXIF tag that turns it.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from onereward_jax.errors import UserError
from onereward_jax.proving_ground.photos import bundled
from onereward_jax.tasks import dimensions_of

# (package, path inside it). The officer is Grace Hopper, by the US Navy; credits of the others are in scikit-image.
PHOTOGRAPHS = {
    "officer": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "page": ("skimage", "data/page.png"),
    "cell": ("skimage", "data/cell.png"),
}
TURNED = 6  # the EXIF orientation of an image that is stored a quarter turn to the left


class Cut(NamedTuple):
    """A request: a crop of a photograph.

    Attributes:
      box: left, top, right, bottom in the photograph.
      hole: left, top, right, bottom of the mask in the crop; None leaves the mask to be drawn.
      extra: more fields of the record; "target": True asks for a target, "turned": True for the EXIF tag.
    """

    photograph: str
    box: tuple[int, int, int, int]
    task: str
    prompt: str = ""
    hole: tuple[int, int, int, int] | None = None
    extra: dict[str, Any] = {}  # noqa: RUF012


TO_TRAIN = (
    Cut("officer", (60, 0, 421, 600), "image_fill", "an officer", (90, 300, 260, 520), {"turned": True}),
    Cut("galaxies", (0, 301, 1000, 872), "image_fill", "a galaxy", (400, 200, 640, 380), {"target": True}),
    Cut("cell", (0, 57, 549, 604), "image_fill", "a round cell"),
    Cut("galaxies", (431, 1, 954, 872), "image_extend"),
    Cut("officer", (0, 40, 511, 345), "image_extend"),
    Cut("officer", (7, 0, 448, 511), "image_extend", extra={"extend": "left=64,right=6"}),
    Cut("cell", (99, 0, 450, 659), "object_removal", hole=(60, 200, 290, 460)),
    Cut("galaxies", (13, 40, 760, 480), "object_removal", hole=(300, 150, 420, 270), extra={"target": True}),
    Cut("officer", (101, 0, 480, 377), "object_removal", hole=(20, 40, 200, 140)),
    Cut("page", (20, 0, 139, 190), "text_rendering", 'the words "Let us"', (0, 40, 90, 75)),
    Cut("page", (0, 0, 384, 191), "text_rendering", 'the word "markers"', (10, 160, 190, 189)),
    Cut("page", (3, 0, 191, 187), "text_rendering", 'the word "Region"', (0, 5, 120, 40)),
)
HELD_OUT = (
    Cut("officer", (30, 20, 501, 490), "image_fill", "a flag", (280, 60, 460, 300)),
    Cut("galaxies", (64, 201, 901, 707), "image_extend"),
    Cut("cell", (31, 90, 500, 561), "object_removal", hole=(120, 100, 350, 330)),
    Cut("page", (40, 20, 381, 190), "text_rendering", 'the word "values"', (100, 80, 200, 120)),
)


def photograph(name: str) -> Image.Image:
    """Open a photograph.

    Raises:
      UserError: the proving ground has it, or its package is missing.
    """
    package, inner = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the photographs of {package} are missing: pip install onereward-jax")
    path = Path(spec.origin).parent / inner
    if path in {photo.path for photo in bundled()}:
        raise UserError(f"{path} is a photograph of the proving ground: take another in PHOTOGRAPHS")
    return Image.open(path)


def write_requests(directory: Path, cuts: tuple[Cut, ...]) -> None:
    """Write requests.jsonl and its images: colours as JPEG, grey ones as PNG."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_request(directory, f"{number:02d}", cut)) for number, cut in enumerate(cuts)]
    (directory / "requests.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _request(directory: Path, name: str, cut: Cut) -> dict[str, Any]:
    image, extra = photograph(cut.photograph).crop(cut.box), dict(cut.extra)
    suffix = "png" if image.mode == "L" else "jpg"
    fields = {"id": f"{name}-{cut.task}", "task": cut.task, "image": f"images/{name}.{suffix}"}
    if cut.prompt:
        fields["prompt"] = cut.prompt
    if cut.hole:
        fields["mask"] = f"images/{name}-mask.png"
        mask_of(image, cut.hole).save(directory / fields["mask"])
    if extra.pop("target", False):
        fields["target"] = f"images/{name}-target.{suffix}"
        _target(image, cut).save(directory / fields["target"])
    if extra.pop("turned", False):
        exif = Image.Exif()
        exif[0x0112] = TURNED
        image.transpose(Image.Transpose.ROTATE_90).save(directory / fields["image"], exif=exif)
    else:
        image.save(directory / fields["image"])
    return fields | extra


def mask_of(image: Image.Image, hole: tuple[int, int, int, int]) -> Image.Image:
    """Draw a mask with an elliptic hole."""
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse(hole, fill=255)
    return mask


def _target(image: Image.Image, cut: Cut) -> Image.Image:
    """The right answer: the image itself; of a removal, with what lies beside the hole in the hole."""
    if cut.task != "object_removal":
        return image
    assert cut.hole is not None
    beside = image.copy()
    beside.paste(image, (cut.hole[2] - cut.hole[0], 0))
    return Image.composite(beside, image, mask_of(image, cut.hole))


def write_preferences(directory: Path, side: int) -> None:
    """Write preference data: of every request three candidates, the crop itself, the hole blurred, and the hole grey.

    Args:
      side: candidates have the sizes of a fill model's answers, about the area of side x side pixels.
    """
    (directory / "images").mkdir(parents=True, exist_ok=True)
    wide, narrow = (round(side * share) // 16 * 16 for share in (1.25, 0.75))
    with (directory / "preferences.jsonl").open("w", encoding="utf-8") as file:
        for number, cut in enumerate(TO_TRAIN + HELD_OUT):
            crop = Image.fromarray(np.asarray(photograph(cut.photograph).crop(cut.box).convert("RGB")))
            image = crop.resize((side, side) if number % 3 else (wide, narrow), Image.Resampling.LANCZOS)
            width, height = image.size
            mask = mask_of(image, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
            hidden = [image, image.filter(ImageFilter.GaussianBlur(side / 32)), _noise(image, number)]
            candidates = []
            for candidate, content in enumerate(hidden):
                candidates.append({"image": f"images/{number}-{candidate}.png"})
                Image.composite(content, image, mask).save(directory / candidates[-1]["image"])
            dimensions = dimensions_of(cut.task, cut.prompt)
            votes = [{"dimension": d, "annotator": "a", "best": 0, "worst": 2} for d in dimensions]
            fields = {"id": f"{number}", "task": cut.task, "prompt": cut.prompt, "candidates": candidates}
            file.write(json.dumps(fields | {"votes": votes}) + "\n")


def _noise(image: Image.Image, seed: int) -> Image.Image:
    grey = np.random.default_rng(seed).integers(96, 160, (image.height, image.width), np.uint8)
    return Image.fromarray(grey).convert("RGB")
