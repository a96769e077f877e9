"""The whole loop, by the commands that its users type: photographs in, a judge's held-out accuracy beside people's."""

import json

import numpy as np
import pytest
from PIL import Image

from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.images.grid import write_png
from onereward_jax.proving_ground import photos
from tests.support import tiny_clip, tiny_fill
from tests.support.annotation_browser import Server, find_browser, open_browser
from tests.support.chain import JUDGE
from tests.support.collecting import ARGUMENTS, Processes
from tests.support.killed_command import finish, start

pytest.importorskip("playwright", reason="needs playwright")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium, such as Debian's package chromium")
# Of the two, Ben is in a hurry: he gives the same answer to everything.
PEOPLE = {"Ann": (("1", "Shift+2"), ("3", "Shift+1"), ("0",)), "Ben": (("2", "Shift+4"),)}
JUDGE_SETTINGS = {
    "judge.held_out_share": 0.4,
    "judge.evaluate_every": 1,
    "judge.image_step": 16,
    "train.num_steps": 1,
    "train.batch_size": 2,
    "data.task_weights.object_removal": 0,
    "data.task_weights.text_rendering": 0,
}


def onereward(command: str, *arguments: object) -> None:
    assert cli.main([command, *map(str, arguments)]) == 0


def answer_all(page, url: str, name: str, keys: tuple[tuple[str, ...], ...]) -> int:
    """Sign in and answer every question of every item by keys; the number of items."""
    page.goto(url)
    page.locator("#sign-in-value").wait_for()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    done, last = 0, ""
    while True:
        page.locator(f'#item[data-item]:visible:not([data-item="{last}"]), h1:text("All done")').first.wait_for()
        if page.get_by_role("heading", name="All done").is_visible():
            return done
        last, asked = page.locator("#item").get_attribute("data-item"), 0
        while page.locator("#next.ready").count() == 0:
            for key in keys[(done + asked) % len(keys)]:
                page.keyboard.press(key)
            asked += 1
            assert asked < 10
        page.keyboard.press("Enter")
        page.locator("#status.good").wait_for()
        done += 1


def test_from_photographs_to_a_judge_beside_people(tmp_path, tmp_path_factory, capsys):
    for photo in photos.find(None)[:8]:
        with Image.open(photo.path) as image:
            small = np.asarray(image.convert("RGB").resize((48, 40)))
        write_png(tmp_path / "photos" / f"{photo.name}.png", small)
        (tmp_path / "photos" / f"{photo.name}.txt").write_text("a small red circle")
    clip = tiny_clip.write(tmp_path / "models" / "clip")
    tiny_fill.pipeline(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    chosen, masked, candidates, pairs = (tmp_path / name for name in ("chosen", "masked", "candidates", "pairs"))

    onereward(
        "select",
        "--source",
        tmp_path / "photos",
        "--clip",
        clip,
        "--clusters",
        2,
        "--duplicates",
        1,
        "--count",
        6,
        "--out",
        chosen,
    )
    onereward("masks", "--source", chosen, "--tasks", "image_fill=.5,image_extend=.5", "--out", masked)
    with Processes() as processes:
        made = ["--source", str(masked), "--model", str(tmp_path / "base"), "--out", str(candidates)]
        processes.start([*ARGUMENTS, "--guided_share=0", "--max_steps=2", *made])
        assert processes.ended() == 0

    server = Server(candidates, "best_worst", "--overlap", "1", "--overlap_votes", "2", "--repeats", "0")
    try:
        with open_browser() as browser:
            for name, keys in PEOPLE.items():
                assert answer_all(browser.new_page(), server.url, name, keys) == 6
    finally:
        server.stop()

    onereward("agreement", "--votes", candidates, "--json", tmp_path / "agreement.json")
    found = json.loads((tmp_path / "agreement.json").read_text())
    assert {"Ann", "Ben"} <= {*json.dumps(found).replace('"', " ").split()}
    onereward("preferences", "--data", candidates, "--held_out_share", 0, "--out", pairs)
    records = open_records(pairs)
    assert len(records) == 6
    assert {vote.annotator for number in range(6) for vote in records[number].votes} == {"Ann", "Ben"}

    capsys.readouterr()
    settings = JUDGE | JUDGE_SETTINGS | {"judge.data": f"({str(pairs)!r},)"}
    cache = tmp_path_factory.getbasetemp() / "compiled"
    said = finish(start("train-judge", "miniature/judge", settings, tmp_path / "judge", cache))
    (line,) = [json.loads(line) for line in (tmp_path / "judge" / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= line["judge/held_out/accuracy"] <= 1
    assert 0 <= line["judge/held_out/one_annotator"] <= 1
    assert "one annotator" in said
