"""Damaged image files: an image, with our warnings at most, or one sentence."""

import json
import resource
import warnings

import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import good_records, open_records, write_records
from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import read_requests
from onereward_jax.data.requests.record import Request
from onereward_jax.errors import UserError
from onereward_jax.images.decoding import MAX_PIXELS
from onereward_jax.images.reading import read_image, read_mask
from tests.support.hostile import Trials, is_one_sentence
from tests.support.image_files import fake_ghostscript, mutated, other_files

_MEMORY = 3 * 2**20  # KiB: a header may claim MAX_PIXELS, and 16-bit grey takes 16 bytes a pixel on the way
_SUFFIXES = (".png", ".jpg", ".webp", ".tiff", ".eps", "")


def test_damaged_images(tmp_path, capfd):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trials = Trials("mutated images", short=2000, long=40_000)
    for trial in trials:
        name, content = mutated(trial.rng)
        path = tmp_path / f"image{trial.rng.choice(_SUFFIXES)}"
        path.write_bytes(content)
        read, dimensions = (read_image, 3) if trial.rng.random() < 0.7 else (read_mask, 2)
        with warnings.catch_warnings(record=True) as caught, trial:
            warnings.simplefilter("always")
            image = read(path)
            if image.dtype != np.uint8 or image.ndim != dimensions or image.size > 3 * MAX_PIXELS:
                trial.fail(f"of {name}: {image.dtype}, {image.shape}")
        for warning in caught:
            text = str(warning.message)
            if warning.category is not UserWarning or not text.startswith(str(path)) or not is_one_sentence(text):
                trial.fail(f"of {name}: {warning.category.__name__}: {text}")
        path.unlink()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err  # where libtiff writes a line of its own, from C
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MEMORY
    trials.check()
    assert trials.accepted > trials.count / 10
    assert trials.refused > trials.count / 10


def test_no_reader_runs_ghostscript(tmp_path, monkeypatch, capsys):
    """An EPS named .png, given to fill, to the judge, as an image to train on, and in a preference record."""
    ran = fake_ghostscript(tmp_path, monkeypatch)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(other_files()["eps"])
    with pytest.raises(UserError, match=r"a\.png is not a readable image"):
        Request("a", folder / "a.png", folder / "a.png", "a cat").pictures()
    with pytest.raises(UserError, match="are bad, more than"):
        read_requests(folder, Defaults(prompt="a cat"), bad_share=0.5)
    line = {"id": "a", "task": "image_fill", "prompt": "a cat", "candidates": [{"image": "a.png"}] * 2}
    (folder / "preferences.jsonl").write_text(json.dumps(line))
    assert list(good_records(open_records(folder), bad_share=1.0)) == []
    write_records(tmp_path / "copy", iter([open_records(folder)[0]]), "folder")  # names files by their formats
    arguments = ["--model", "none", "--first", str(folder / "a.png"), "--second", str(folder / "a.png")]
    assert cli.main(["judge", *arguments, "--task", "object_removal"]) == 2
    assert "a.png is not a readable image" in capsys.readouterr().err
    assert not ran.exists()
