"""Files cut into pieces, against the plain bytes they stand for."""

from hypothesis import example, given
from hypothesis import strategies as st

from rafsfs.build.source import Hole
from rafsfs.build.source_pieces import cut_pieces


def pattern(offset, length):
    """Bytes none of which is zero, so that a hole in the wrong place shows."""
    return bytes(1 + position % 251 for position in range(offset, offset + length))


@st.composite
def files(draw):
    """(size, extents): gaps and lengths in turn, both of them often zero or about a piece long."""
    lengths = st.one_of(st.integers(0, 40), st.sampled_from([0, 8, 16, 64]))
    position, extents = 0, []
    for gap, length in draw(st.lists(st.tuples(lengths, lengths), max_size=8)):
        extents.append((position + gap, length))
        position += gap + length
    return position + draw(lengths), extents


@given(files(), st.integers(1, 70))
@example((0, []), 8)
@example((0, [(0, 0)]), 8)
@example((24, [(8, 4), (12, 4)]), 8)
def test_pieces_are_the_file_and_keep_the_promises(file, piece_size):
    size, extents = file
    expected = bytearray(size)
    reads = []
    for offset, length in extents:
        expected[offset : offset + length] = pattern(offset, length)

    def read(offset, length):
        reads.append((offset, length))
        return pattern(offset, length)

    got, before = b"", None
    for piece in cut_pieces(size, extents, piece_size, read):
        assert len(got) % piece_size == 0, "only the last piece may be short"
        if isinstance(piece, Hole):
            assert piece.length > 0
            assert not isinstance(before, Hole), "one hole may span many pieces"
            got += bytes(piece.length)
        else:
            assert 0 < len(piece) <= piece_size
            assert any(piece), "a piece without data is a hole"
            got += piece
        before = piece
    assert got == expected
    assert reads == sorted(reads)
    assert sum(length for _, length in reads) == sum(length for _, length in extents)
