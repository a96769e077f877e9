"""A repository in the huggingface_hub cache, and answers of the hub; no test uses the network."""

import json
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from onereward_jax.errors import UserError
from onereward_jax.weights.hub import model_directory, repository_of

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def snapshot(cache):
    """A cached repository with a sharded transformer and an autoencoder."""
    repository = cache / "models--owner--a-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    for part in ("vae", "transformer"):
        (snapshot / part).mkdir(parents=True)
        (snapshot / part / "config.json").write_text("{}")
    (snapshot / "vae" / "model.safetensors").write_text("")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "transformer" / "m.safetensors.index.json").write_text(json.dumps(index))
    for shard in index["weight_map"].values():
        (snapshot / "transformer" / shard).write_text("")
    return snapshot


@pytest.fixture
def answer(monkeypatch):
    """Replace downloads by a fixed answer and record the requests; the cache is read as it is."""
    asked, answers = [], []
    download = huggingface_hub.snapshot_download

    def snapshot_download(repo, **options):
        if options.get("local_files_only"):
            return download(repo, **options)
        asked.append(options)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return str(answers[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked, answers


def http_error(kind):
    """Make the library's error for an answer of the hub."""
    client = sys.modules[errors.HTTPError.__module__.partition(".")[0]]  # httpx or its successor
    request = client.Request("GET", "https://huggingface.co/owner/a-model")
    return kind("refused", response=client.Response(403, request=request))


def test_a_cached_repository_is_found_offline(snapshot):
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("")
    assert model_directory("owner/a-model") == snapshot
    assert model_directory("owner/a-model", folders=["vae", "transformer"]) == snapshot
    assert model_directory("owner/a-model:vae") == snapshot / "vae"
    assert model_directory("owner/a-model", revision=COMMIT, folders=["vae"]) == snapshot


@pytest.mark.parametrize("damage", ["no folder", "no weights", "no shard"])
def test_missing_files_are_downloaded(snapshot, answer, damage):
    asked, answers = answer
    folders = ["vae", "transformer"]
    if damage == "no folder":
        folders.append("tokenizer")
    else:
        (snapshot / {"no weights": "vae/model.safetensors", "no shard": "transformer/2.safetensors"}[damage]).unlink()
    answers.append(snapshot)
    model_directory("owner/a-model", token="secret", folders=folders)
    assert len(asked) == 1
    assert asked[0]["token"] == "secret"
    assert {"vae/*.safetensors", "transformer/*.json", "model_index.json"} <= set(asked[0]["allow_patterns"])
    # A repository may hold the same weights in other layouts at its top: tens of gigabytes that no one asked for.
    assert "*.safetensors" not in asked[0]["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            http_error(errors.GatedRepoError),
            PermissionError,
            "gated: accept its licence at https://huggingface.co/o",
        ),
        (
            http_error(errors.RepositoryNotFoundError),
            FileNotFoundError,
            "nor such a repository on the Hugging",
        ),
        (http_error(errors.RevisionNotFoundError), FileNotFoundError, "owner/a-model has no revision v2"),
        (http_error(errors.HfHubHTTPError), FileNotFoundError, r"could not be reached \(HfHubHTTPError\)"),
        (errors.LocalEntryNotFoundError("no network"), FileNotFoundError, "could not be reached"),
        (errors.LocalTokenNotFoundError("no token"), PermissionError, "run `hf auth login`"),
    ],
)
def test_errors_of_the_hub_become_one_sentence(cache, answer, error, kind, sentence):
    answer[1].append(error)
    with pytest.raises(kind, match=sentence) as caught:
        model_directory("owner/a-model", revision="v2")
    assert "\n" not in str(caught.value)


def test_an_unknown_repository_is_named(cache):
    with pytest.raises(FileNotFoundError, match="owner/a-model"):
        model_directory("owner/a-model")
    with pytest.raises(FileNotFoundError):
        model_directory("owner/a--model")


def test_a_missing_folder_is_named(snapshot, answer):
    answer[1].append(snapshot)
    with pytest.raises(FileNotFoundError, match="unet"):
        model_directory("owner/a-model:unet")


@pytest.mark.parametrize("path", ["judge", "/nowhere/judge", "runs/judge/export", "../judge"])
def test_other_names_stay_paths(cache, path):
    assert str(model_directory(path)) == path


def test_the_repository_of_a_directory_in_the_cache(snapshot, monkeypatch):
    assert repository_of("owner/a-model") == repository_of("owner/a-model:part") == "owner/a-model"
    assert repository_of(snapshot) == repository_of(snapshot / "vae") == "owner/a-model"
    assert repository_of("/nowhere/model") is None
    monkeypatch.chdir(snapshot.parent)
    assert repository_of(snapshot.name) == "owner/a-model"
    assert repository_of(snapshot.parents[3]) is None


def test_a_directory_comes_before_a_repository(cache, monkeypatch):
    (cache / "owner" / "a-model").mkdir(parents=True)
    monkeypatch.chdir(cache)
    assert str(model_directory("owner/a-model")) == "owner/a-model"


def test_a_typo_in_a_path_is_not_looked_up(cache, monkeypatch, answer):
    (cache / "miniature" / "base").mkdir(parents=True)
    monkeypatch.chdir(cache)
    with pytest.raises(FileNotFoundError, match="base"):
        model_directory("miniature/bsae")
    assert not answer[0]


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(UserError, match="a model's path is empty"):
        model_directory("")
