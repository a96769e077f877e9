"""A repository in the cache of huggingface_hub; nothing here asks the network."""

import huggingface_hub
import pytest

from onereward_jax.weights.hub import local_directory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_repository_in_the_cache_is_its_snapshot(cache):
    repository, commit = cache / "models--owner--a-judge", "0" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert local_directory("owner/a-judge") == snapshot


def test_a_repository_that_is_nowhere_is_named(cache):
    with pytest.raises(FileNotFoundError, match="no directory owner/a-judge, and the Hugging Face hub could not"):
        local_directory("owner/a-judge")


@pytest.mark.parametrize("path", ["judge", "/nowhere/judge", "runs/judge/export", "../judge"])
def test_what_is_no_repository_stays_a_path(cache, path):
    assert str(local_directory(path)) == path


def test_a_directory_comes_before_a_repository(cache, monkeypatch):
    (cache / "owner" / "a-judge").mkdir(parents=True)
    monkeypatch.chdir(cache)
    assert str(local_directory("owner/a-judge")) == "owner/a-judge"
