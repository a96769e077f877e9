"""A model directory appears whole or not at all."""

import pytest

from onereward_jax.weights.export import whole_directory


def files(directory):
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_takes_the_name_once_it_is_whole_and_keeps_the_rest(tmp_path):
    model = tmp_path / "model"
    (model / "old").mkdir(parents=True)
    (model / "old" / "notes").write_text("mine")
    (model / "weights").write_text("1")
    with whole_directory(model) as partial:
        (partial / "weights").write_text("2")
        assert files(model) == {"old/notes": "mine", "weights": "1"}
    assert files(model) == {"old/notes": "mine", "weights": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_everything_as_it_was(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")

    def write_half():
        with whole_directory(model) as partial:
            (partial / "weights").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert files(tmp_path) == {"model/weights": "1"}


def test_what_a_killed_export_left_is_not_taken_over(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").write_text("?")
    with whole_directory(tmp_path / "model") as partial:
        (partial / "weights").write_text("1")
    assert files(tmp_path) == {"model/weights": "1"}


def test_a_file_of_that_name(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(ValueError, match="choose a directory"), whole_directory(tmp_path / "model"):
        pass
