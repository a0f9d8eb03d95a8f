"""The plain metadata space: any range across any pages is the slice; nothing outside is read."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rafsfs.errors import FormatError
from rafsfs.metadata.space import MetadataSpace

PAGE = 64
DATA = bytes(number % 251 for number in range(PAGE * 10))


def space(offset=0, length=None, loaded=None):
    def load(page):
        if loaded is not None:
            loaded.append(page)
        assert 0 <= page < 10
        return DATA[page * PAGE : (page + 1) * PAGE]

    return MetadataSpace(load, PAGE, offset=offset, length=len(DATA) - offset if length is None else length)


@given(st.integers(0, 5 * PAGE), st.integers(0, len(DATA)), st.integers(0, len(DATA)))
@example(0, len(DATA), 0)  # nothing, where there is no page any more
def test_any_range_is_the_slice(start, offset, length):
    section = DATA[start:]
    if offset + length > len(section):
        with pytest.raises(FormatError, match="outside its section"):
            space(start).read(offset, length)
    else:
        assert space(start).read(offset, length) == section[offset : offset + length]


@pytest.mark.parametrize(
    ("offset", "length", "pages"),
    [(0, 1, [0]), (0, PAGE, [0]), (PAGE - 1, 1, [0]), (PAGE - 1, 2, [0, 1]), (10, 3 * PAGE, [0, 1, 2, 3])],
)
def test_only_pages_of_the_range_are_loaded(offset, length, pages):
    loaded = []
    space(loaded=loaded).read(offset, length)
    assert loaded == pages


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, -1), (100, 1), (99, 2), (0, 101), (2**64, 1), (1, 2**64), (-5, 3)]
)
def test_range_outside_is_refused_before_a_page_is_loaded(offset, length):
    loaded = []
    with pytest.raises(FormatError, match="outside its section"):
        space(PAGE, 100, loaded).read(offset, length)
    assert loaded == []
