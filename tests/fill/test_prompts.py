"""PromptEncoder: cutting, caching, filled batches, both encoders."""

import jax
import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.fill.prompts import PromptEncoder
from tests.support import tiny_fill
from tests.support.tiny_fill import CLIP_LENGTH, PROMPTS, T5_LENGTH


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_fill.text_encoders(tmp_path_factory.mktemp("tokenizers"), layers=2)


def _encoder(parts, **fields):
    return PromptEncoder(*parts, **({"batch_size": 3} | fields))


def _count_batches(encoder):
    """Replaces the compiled function by one that notes the shapes of its tokens."""
    apply, shapes = encoder._apply, []

    def counted(clip_params, t5_params, clip_ids, t5_ids):
        shapes.append((clip_ids.shape, t5_ids.shape))
        return apply(clip_params, t5_params, clip_ids, t5_ids)

    encoder.__dict__["_apply"] = counted
    return shapes


def test_tokens_are_padded_to_fixed_lengths(parts):
    clip_ids, t5_ids = _encoder(parts).tokenize(PROMPTS, T5_LENGTH)
    tokenizer, tokenizer_2 = parts[:2]
    assert (clip_ids.shape, t5_ids.shape) == ((5, CLIP_LENGTH), (5, T5_LENGTH))
    assert clip_ids.dtype == t5_ids.dtype == np.int32
    np.testing.assert_array_equal(clip_ids[1, 2:], tokenizer.eos_token_id)  # start, "remove", then the end
    assert t5_ids[4].tolist() == [tokenizer_2.eos_token_id] + [tokenizer_2.pad_token_id] * (T5_LENGTH - 1)


def test_states_are_those_of_each_prompt_alone(parts):
    encoder = _encoder(parts)
    states, pooled = encoder.encode([*PROMPTS, PROMPTS[1]], T5_LENGTH)
    assert (states.shape, pooled.shape) == ((6, T5_LENGTH, 24), (6, 16))
    np.testing.assert_array_equal(states[5], states[1])
    assert np.abs(np.diff(pooled[:5], axis=0)).max(axis=1).min() > 1e-3
    alone = _encoder(parts, batch_size=1, cache_size=0)
    for i, prompt in enumerate(PROMPTS):
        state, summary = alone.encode(prompt, T5_LENGTH)
        np.testing.assert_allclose(states[i], state[0], atol=2e-5)
        np.testing.assert_allclose(pooled[i], summary[0], atol=2e-6)


def test_each_prompt_is_computed_once_in_batches_of_one_size(parts):
    encoder = _encoder(parts)
    shapes = _count_batches(encoder)
    first, _ = encoder.encode(PROMPTS, T5_LENGTH)
    assert shapes == [((3, CLIP_LENGTH), (3, T5_LENGTH))] * 2
    again, _ = encoder.encode(PROMPTS[::-1], T5_LENGTH)
    assert len(shapes) == 2
    np.testing.assert_array_equal(first, again[::-1])
    encoder.encode("remove", T5_LENGTH + 1)  # another length is another encoding
    assert len(shapes) == 3


def test_the_oldest_encodings_go_first(parts):
    encoder = _encoder(parts, cache_size=2)
    shapes = _count_batches(encoder)
    states, _ = encoder.encode(PROMPTS, T5_LENGTH)  # more than are kept
    assert states.shape[0] == 5
    encoder.encode(PROMPTS[3], T5_LENGTH)
    assert len(shapes) == 2
    encoder.encode(PROMPTS[0], T5_LENGTH)  # pushes out PROMPTS[4]
    assert len(shapes) == 3
    encoder.encode(PROMPTS[3], T5_LENGTH)
    assert len(shapes) == 3
    encoder.encode(PROMPTS[4], T5_LENGTH)
    assert len(shapes) == 4


def test_what_is_cut_is_named(parts):
    encoder = _encoder(parts)
    prompt = "a small red circle a large blue square a small red circle"
    with pytest.warns(UserWarning, match="cut from the end") as warned:
        clip_ids, t5_ids = encoder.tokenize([PROMPTS[0], prompt], T5_LENGTH)
    assert [str(w.message) for w in warned] == [
        f"CLIP reads {CLIP_LENGTH} tokens; cut from the end of the prompt: 'small red circle'",
        f"T5 reads {T5_LENGTH} tokens; cut from the end of the prompt: 'a small red circle'",
    ]
    tokenizer, tokenizer_2 = parts[:2]
    assert clip_ids[1, -1] == tokenizer.eos_token_id
    assert t5_ids[1, -1] == tokenizer_2.eos_token_id
    assert tokenizer_2.decode(t5_ids[1, :-1]) == "a small red circle a large blue square"


def test_a_prompt_that_just_fits_is_not_warned_of(parts):
    _encoder(parts).tokenize(["a small red circle a large blue square"], T5_LENGTH)  # warnings are errors here


def test_no_prompt_is_refused(parts):
    with pytest.raises(UserError):
        _encoder(parts).encode([])


def test_a_missing_folder_is_named(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(FileNotFoundError, match="tokenizer_2"):
        PromptEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_encoded_ahead_are_the_same_and_need_no_encoder_again(parts, tmp_path, dtype):
    cast = lambda params: jax.tree.map(lambda x: x.astype(dtype), params)
    modules = [module.clone(dtype=dtype) for module in parts[2:4]]
    made = lambda: PromptEncoder(*parts[:2], *modules, *map(cast, parts[4:]), batch_size=3, dtype=dtype)
    expected = made().encode(PROMPTS, T5_LENGTH)
    encoder = made()
    encoder.encode_ahead([*PROMPTS, PROMPTS[0]], T5_LENGTH, tmp_path)
    assert encoder.text_encoder_params is encoder.text_encoder_2_params is None
    again = made()
    shapes = _count_batches(again)
    again.encode_ahead(PROMPTS, T5_LENGTH, tmp_path)
    for of_run in (encoder, again):
        for found, wanted in zip(of_run.encode(PROMPTS[::-1], T5_LENGTH), expected, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found[::-1], wanted)
        with pytest.raises(UserError, match="released"):
            of_run.encode("another", T5_LENGTH)
    assert shapes == []


def test_other_prompts_other_encoders_or_a_killed_start_are_encoded_anew(parts, tmp_path):
    _encoder(parts).encode_ahead(PROMPTS[:2], T5_LENGTH, tmp_path)
    nothing, kill = lambda: None, (tmp_path / "prompts.json").unlink
    for prepare, prompts, of in ((nothing, PROMPTS, ""), (kill, PROMPTS[::-1], ""), (nothing, PROMPTS[::-1], "others")):
        prepare()
        encoder = _encoder(parts, fingerprint=of)
        shapes = _count_batches(encoder)
        encoder.encode_ahead(prompts, T5_LENGTH, tmp_path)
        assert len(shapes) == 2
        np.testing.assert_array_equal(
            encoder.encode(PROMPTS, T5_LENGTH)[0], _encoder(parts).encode(PROMPTS, T5_LENGTH)[0]
        )


@pytest.mark.parametrize("name", ["prompts.json", "prompt_embeds.npy", "pooled.npy"])
@pytest.mark.parametrize("damage", ["removed", "cut short", "a directory"])
def test_damaged_encodings_are_made_anew(parts, tmp_path, name, damage):
    _encoder(parts).encode_ahead(PROMPTS, T5_LENGTH, tmp_path / "prompts")
    file = tmp_path / "prompts" / name
    content = file.read_bytes()
    file.unlink()
    {"removed": lambda: None, "cut short": lambda: file.write_bytes(content[:-9]), "a directory": file.mkdir}[damage]()
    encoder = _encoder(parts)
    encoder.encode_ahead(PROMPTS, T5_LENGTH, tmp_path / "prompts")
    np.testing.assert_array_equal(encoder.encode(PROMPTS, T5_LENGTH)[0], _encoder(parts).encode(PROMPTS, T5_LENGTH)[0])
