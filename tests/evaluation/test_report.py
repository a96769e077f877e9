import base64
import functools
import io
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from onereward_jax.evaluation import accuracy, good_same_bad
from onereward_jax.evaluation.report import plots, run_report
from onereward_jax.tasks import CELLS, TASKS, dimensions_of
from tests.support.page import Page


def comparisons(gains: dict[str, float], n: int = 60) -> list[good_same_bad.Comparison]:
    generator = np.random.default_rng(0)
    scenes = []
    for task, gain in gains.items():
        for _ in range(n):
            base = {dimension: float(generator.uniform(0.3, 0.6)) for dimension in dimensions_of(task)}
            shift = gain + generator.normal(0, 0.1)
            policy = {dimension: float(np.clip(score + shift, 0, 1)) for dimension, score in base.items()}
            scenes.append(good_same_bad.Comparison(task, base, policy, dict.fromkeys(base, 0.7)))
    return scenes


@pytest.fixture(scope="module")
def evaluation():
    generator = np.random.default_rng(0)
    records = [
        (*cell, float(generator.uniform(0.3, 1)), float(generator.uniform(0, 0.7)), bool(generator.uniform() < 0.9))
        for cell in CELLS
        for _ in range(50)
    ]
    judged = accuracy.judge_accuracy(records)
    scenes = comparisons(dict(zip(TASKS, (0.2, 0.0, 0.15, -0.2), strict=True)))
    return {
        "algorithm": "dynamic",
        "judge_accuracy": accuracy.table(judged),
        "judge_ceiling": accuracy.table(judged, "ceiling"),
        "gsb": good_same_bad.good_same_bad(scenes),
        "seconds": {"train": 200.0, "evaluate": 50.0},
        "peak_memory_gib": 2.5,
        "judge": judged,
        "truth": good_same_bad.scores_by_dimension(scenes),
        "judge_view": good_same_bad.judge_preferences(scenes),
    }


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = []
    for step in range(1, 61):
        line = {"step": step, "learning/loss": 1 / step, "learning/grad_norm": 0.5, "perf/step_time_seconds": 1.0}
        task = TASKS[step % 4]
        line |= {plots.reward_key(task, dimension): 0.5 + step / 200 for dimension in dimensions_of(task)}
        if step % 20 == 0:
            line |= {plots.ground_truth_key(task): step / 300 for task in TASKS}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + '\n{"step": 61, "learn')
    return path


def example(task: str, prompt: str, seed: int = 0, size: int = 64) -> run_report.ExampleRow:
    generator = np.random.default_rng(seed)
    source, base, reference, policy = generator.integers(0, 256, (4, size, size, 3), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[20:40, 10:30] = 1
    scores = dict.fromkeys(dimensions_of(task), (0.25, 0.75))
    p_yes = dict.fromkeys(scores, 0.31)
    return run_report.ExampleRow(task, prompt, source, mask, base, reference, policy, scores, p_yes, "good")


def test_the_whole_page(tmp_path, evaluation, metrics):
    config = ConfigDict({"seed": 0, "rl": {"threshold": 0.9}, "note": "</pre><script>alert(1)</script>"})
    rows = [example(task, 'the word "<b>SUN</b>" & more') for task in TASKS]
    path = run_report.write_report(
        tmp_path / "report.html",
        metrics_jsonl=metrics,
        evaluation=evaluation,
        examples=rows,
        setting=run_report.Setting(config, {"jax": "0.10"}, ["Photographs: <somebody>"]),
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3_000_000

    # Nothing is loaded, nothing of the run's words becomes markup, no stand-in colour is left.
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags
    assert "b" in page.tags
    assert "<b>SUN" not in text
    assert not any(colour in text for colour in plots.STAND_IN.values())
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    references = re.findall(r"url\(#([^)]*)\)", text) + [a[1:] for a in page.addresses if a.startswith("#")]
    assert references
    assert set(references) <= set(page.ids)

    # 4 rewards, the ground truth, 2 comparisons, 1 calibration, 3 training curves, and a bullet a cell.
    assert page.tags.count("svg") == 4 + 1 + 2 + 1 + 3 + len(CELLS)
    assert page.tags.count("img") == 5 * len(TASKS)
    for words in ("text alignment 25 → 75 · P(Yes) 0.31", "judge differs", "rl.threshold = 0.9", "3.3 min", "2.50 GiB"):
        assert words in page.words
    headings = re.findall(r"<h2>([^<]*)", text)
    assert headings == [
        "Reward during training",
        "Accuracy of the judge",
        "Policy against base, by ground truth",
        "Judge against ground truth",
        "Images",
        "Training",
        "Setting",
        "Credits",
    ]


def test_images_in_the_page_are_unchanged(tmp_path):
    row = example("object_removal", "remove")
    text = run_report.write_report(tmp_path / "report.html", examples=[row]).read_text(encoding="utf-8")
    encoded = re.findall(r'src="data:image/png;base64,([^"]*)" alt="(\w+)"', text)
    assert [name for _, name in encoded] == ["source", "mask", "base", "reference", "policy"]
    shown = {name: np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for data, name in encoded}
    np.testing.assert_array_equal(shown["policy"], row.policy)
    np.testing.assert_array_equal(shown["mask"][row.mask == 0], row.source[row.mask == 0])
    assert (shown["mask"][row.mask == 1] != row.source[row.mask == 1]).any(axis=-1).all()


def test_many_or_large_images_keep_the_page_small(tmp_path):
    rows = [example(task, "x", seed) for task in TASKS for seed in range(20)]
    path = run_report.write_report(tmp_path / "many.html", examples=rows)
    assert path.stat().st_size < 3_000_000
    left_out = re.search(r"(\d+) of 80 rows were left out", path.read_text(encoding="utf-8"))
    assert left_out
    assert path.read_text(encoding="utf-8").count("<section") == 80 - int(left_out[1])

    path = run_report.write_report(tmp_path / "large.html", examples=[example("image_fill", "x", size=512)])
    assert path.read_text(encoding="utf-8").count("data:image/jpeg") == 5
    assert path.stat().st_size < 600_000


def test_a_page_without_data_says_so(tmp_path):
    words = Page(run_report.write_report(tmp_path / "report.html").read_text(encoding="utf-8")).words
    for sentence in (
        "have not been compared yet, so this page shows no result",
        "No reward was recorded",
        "The judge has not been evaluated yet",
        "No images were made",
        "No training curves were recorded",
    ):
        assert sentence in words


def test_a_page_with_the_required_keys_alone(tmp_path, evaluation):
    required = {key: evaluation[key] for key in ("algorithm", "judge_accuracy", "gsb", "seconds", "peak_memory_gib")}
    words = Page(run_report.write_report(tmp_path / "r.html", evaluation=required).read_text(encoding="utf-8")).words
    assert "The judge has not been asked about the evaluated images" in words
    assert "good − bad" in words


def test_the_result_is_honest(evaluation):
    text = run_report.summarize(evaluation, {}).replace(run_report.SPACE, " ")
    better, worse = text.index("is better than the base in image fill"), text.index("it is worse in text rendering")
    assert better < text.index("object removal (+") < worse
    assert re.search(r"In image extend \([^)]*\) the interval includes zero, so the result is open", text)
    assert "in text rendering the judge prefers the policy where by ground truth the policy is worse" in text

    nothing = {"gsb": {"image_fill": good_same_bad.shares(10, 30, 10)}}
    assert "shows no certain change" in run_report.summarize(nothing, {})
    assert "better" not in run_report.summarize(nothing, {})
    harm = run_report.summarize({"gsb": {"image_fill": good_same_bad.shares(5, 10, 85)}}, {})
    assert "is worse than the base in image fill (−80" in harm
    assert "better" not in harm


def test_the_summary_says_how_the_reward_changed():
    steps = np.arange(100.0)
    for slope, word in ((0.002, "rose from"), (-0.002, "fell from"), (0.0, "stayed at")):
        curves = {"rewards/image_fill/structure": (steps, 0.5 + slope * steps)}
        assert word in run_report.summarize({}, curves)


def test_curves_are_read_without_gaps_or_nonsense(metrics, tmp_path):
    curves = plots.read_curves(metrics)
    steps, values = curves["learning/loss"]
    np.testing.assert_array_equal(steps, np.arange(1, 61))
    np.testing.assert_allclose(values, 1 / steps)
    assert len(curves["rewards/image_fill/structure"][0]) == 15

    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"step": 2, "a": 1}\n{"step": 1, "a": NaN, "b": "x"}\n[]\n{"step": 2, "a": 3}\n{"a": 9}\n')
    assert {key: (list(s), list(v)) for key, (s, v) in plots.read_curves(odd).items()} == {"a": ([2.0], [3.0])}
    assert plots.read_curves(tmp_path / "absent.jsonl") == {}
    hostile = [
        "[" * 10_000,
        '{"step": ' + "1" * 400 + ', "a": 1}',
        '{"step": 3, "a": ' + "1" * 400 + ', "b": 2}',
        "\ud800",
    ]
    odd.write_bytes("\n".join(hostile).encode(errors="surrogatepass"))
    assert {key: list(values) for key, (_, values) in plots.read_curves(odd).items()} == {"b": [2.0]}


def test_smoothing_keeps_a_line_and_removes_noise():
    steps = np.arange(1.0, 501)
    where, smoothed = plots.smooth(steps, np.full(500, 0.7))
    np.testing.assert_allclose(smoothed, 0.7)
    noise = np.random.default_rng(0).normal(0, 1, 500)
    assert plots.smooth(steps, noise)[1].std() < 0.3
    where, smoothed = plots.smooth(np.array([5.0]), np.array([2.0]))
    assert (list(where), list(smoothed)) == ([5.0], [2.0])


def test_the_image_grid_has_two_tasks_side_by_side(tmp_path):
    def row(task, colour):
        picture = np.full((64, 64, 3), (colour, 10, 200), np.uint8)
        return run_report.ExampleRow(task, "", picture, np.zeros((64, 64)), picture, picture, picture)

    rows = [row(task, 40 * number) for number, task in enumerate(TASKS) for _ in range(2)]
    run_report.write_examples(tmp_path / "examples.png", rows, scenes=1)
    with Image.open(tmp_path / "examples.png") as image:
        grid = np.asarray(image)
    fill, extend, removal, text = (np.argwhere((grid == (40 * n, 10, 200)).all(axis=-1)) for n in range(4))
    for found in (fill, extend, removal, text):
        assert len(found) == 5 * 128 * 128
    assert fill[:, 0].max() < extend[:, 0].min()
    assert fill[:, 1].max() < removal[:, 1].min()
    assert removal[:, 0].max() < text[:, 0].min()


def test_figures_for_the_documents(tmp_path, evaluation, metrics):
    written = plots.save_figures(tmp_path, metrics, evaluation)
    assert {path.stem for path in written} == {
        "reward_curves",
        "ground_truth_while_training",
        "training",
        "judge_accuracy",
        "good_same_bad",
        "judge_and_ground_truth",
        "calibration",
    }
    for path in written:
        pixels = np.array(Image.open(path).convert("L"))
        assert pixels[0, 0] == 255
        assert 0.002 < (pixels < 200).mean() < 0.5
    assert plots.save_figures(tmp_path / "none", None, {}) == []


def test_alarms_are_shown_with_their_limits(tmp_path):
    lines = [
        {"step": step, "evaluation/gain": 0.1, "evaluation/image_fill/drift_gain": value}
        | {"evaluation/image_fill/sure": 0.1, "gradients/structure/aesthetics": 0.2}
        for step, value in ((10, 0.0), (20, 0.05), (30, 0.06))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "stopped.json").write_text(json.dumps({"step": 10, "at": 30, "reason": "<alarm>", "is_alarm": True}))
    config = {"alarms": {"drift_gain": 0.03, "sure": None}}
    write = functools.partial(run_report.write_report, tmp_path / "report.html")
    page = write(metrics_jsonl=tmp_path / "metrics.jsonl", setting=run_report.Setting(config))
    words = Page(page.read_text(encoding="utf-8")).words
    for shown in ("alarms.drift_gain", "most 0.03", "step 30", "stopped at step 30: <alarm>", "alarms.gradient_cosine"):
        assert shown in words
    assert "share of P(policy better than base)" not in words  # its limit is switched off
