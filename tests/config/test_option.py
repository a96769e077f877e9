"""Any text and any value for any setting: a value that is right, or one sentence."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onereward_jax.config import schema
from onereward_jax.config.load import options
from onereward_jax.config.option import Option, checked, conform, elements_of, is_mapping, read, words_for
from onereward_jax.errors import UserError
from tests.support.hostile import is_one_sentence

FIELDS = sorted(
    {f"{recipe.own} {name}": field for recipe in schema.RECIPES for name, field in options(recipe).items()}.items()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


QUIETLY = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


@QUIETLY
@given(field=st.sampled_from(FIELDS), value=VALUES | st.text(alphabet="()[]{}'\",.-0123456789e ab"))
def test_any_value_of_any_setting(field, value):
    name, field = field
    sentence, found = "", None
    try:
        found = checked(name, field, value if is_mapping(field) else read(field, value))
    except UserError as error:
        sentence = str(error)
    if sentence:
        assert sentence.startswith(name)
        assert is_one_sentence(sentence)
    else:
        assert checked(name, field, found) == found


@QUIETLY
@given(low=st.integers(-10, 10), width=st.integers(0, 10), value=st.integers() | st.integers(-25, 25))
def test_a_number_is_accepted_within_its_range_alone(low, width, value):
    limits = Option(at_least=low, at_most=low + width)
    if low <= value <= low + width:
        assert conform("x", int, limits, value) == value
    else:
        with pytest.raises(UserError, match=f"x must be a whole number from {low} to {low + width}, not {value}"):
            conform("x", int, limits, value)


@QUIETLY
@given(st.text() | st.text(alphabet="()[]{}'\",-1", max_size=300))
def test_any_text_has_elements(text):
    assert isinstance(elements_of(text), list)


def test_words():
    assert words_for(int, Option(at_least=0, at_most=2**32 - 1)) == "a whole number from 0 to 4,294,967,295"
    assert words_for(int, Option(at_least=8, at_most=64, multiple_of=8)) == "a multiple of 8 from 8 to 64"
    assert words_for(int, Option(at_least=1, at_most=9, also=(-1,))) == "a whole number from 1 to 9, or -1"
    assert words_for(float, Option(above=0, at_most=1e30)) == "a number above 0 and at most 1e+30"
    assert words_for(float, Option(at_least=0, below=1)) == "a number, 0 or more and below 1"
