"""Candidates that nobody has voted on are read by what asks people, and refused by what learns from their votes."""

import dataclasses

import pytest

from onereward_jax.atomic_files import write_json
from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import COLLECTION, COMPLETE, open_candidates, open_records
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.errors import UserError
from onereward_jax.runs.judge import judge_training
from tests.support.preference_examples import records

UNVOTED = [dataclasses.replace(record, votes=(), pairs=()) for record in records()]


def test_candidates_without_votes_are_read(tmp_path):
    for number, record in enumerate(UNVOTED):
        write_folder(tmp_path, [record], file=f"candidates-{number:05d}.jsonl")
    assert list(open_candidates(tmp_path)) == UNVOTED


def test_records_with_votes_are_candidates_too(tmp_path):
    write_folder(tmp_path, records())
    assert list(open_candidates(tmp_path)) == records()


def test_what_learns_from_votes_names_the_command_that_asks_for_them(tmp_path):
    write_folder(tmp_path, UNVOTED, file="candidates-00000.jsonl")
    config = load_config("miniature/judge", {"judge.data": (str(tmp_path),)})
    for read in (lambda: open_records(tmp_path), lambda: judge_training(config, tmp_path / "run")):
        with pytest.raises(UserError, match="onereward annotate"):
            read()


def test_a_collection_that_was_stopped_is_refused(tmp_path):
    write_json(tmp_path / COLLECTION, {})
    write_folder(tmp_path, UNVOTED, file="candidates-00000.jsonl")
    with pytest.raises(UserError, match="onereward collect"):
        open_candidates(tmp_path)
    write_json(tmp_path / COMPLETE, {"parts": 2})
    with pytest.raises(UserError, match="onereward collect"):
        open_candidates(tmp_path)
    write_json(tmp_path / COMPLETE, {"parts": 1})
    assert len(open_candidates(tmp_path)) == 3


def test_a_directory_without_candidates(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_candidates(tmp_path / "missing")
    with pytest.raises(UserError):
        open_candidates(tmp_path)
