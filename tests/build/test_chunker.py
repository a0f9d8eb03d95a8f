"""Files into chunks: what is packed, what is found again, what is a hole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.build import chunker as chunker_module
from rafsfs.build.chunker import SHARED_CHUNK_SPAN, Chunker
from rafsfs.build.source import Entry, Hole
from rafsfs.build.tree import NO_BYTES, Body, PlannedBlob, PlannedChunk, Run
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType
from rafsfs.limits import CHUNK_DECODED_BYTES_MAX

BLOCK = 4096
CHUNK = 4 * BLOCK


class RecordingPipeline:
    """Keeps the chunks that it is handed, and gives them their place as ``BlobPipeline`` does."""

    def __init__(self):
        self.planned = PlannedBlob()
        self.chunks = []
        self._end = 0

    def submit(self, chunk, plain):
        chunk.start_block = self._end
        self.chunks.append((chunk, bytes(plain)))
        self._end += -(-len(plain) // BLOCK)

    @property
    def space(self):
        space = bytearray(self._end * BLOCK)
        for chunk, plain in self.chunks:
            start = chunk.start_block * BLOCK
            space[start : start + len(plain)] = plain
        return bytes(space)


def entry(*pieces, size=None):
    length = sum(piece.length if isinstance(piece, Hole) else len(piece) for piece in pieces)
    return Entry(
        b"file",
        FileType.REGULAR,
        0o644,
        0,
        0,
        0,
        size=length if size is None else size,
        content=lambda _: iter(pieces),
    )


@pytest.fixture
def pipeline():
    return RecordingPipeline()


@pytest.fixture
def chunker(pipeline):
    return Chunker(pipeline, CHUNK, 0, {})


def noise(seed, length):
    return bytes((seed * 7 + number * 13 + number // 256) % 255 + 1 for number in range(length))


def read(body, pipeline):
    """What a reader would see of a file."""
    space = pipeline.space
    plain = body.inline
    for run in body.runs:
        if run.chunk is None:
            plain += bytes(run.length)
        else:
            start = (run.chunk.start_block + run.block) * BLOCK
            plain += space[start : start + run.length]
    return plain


def test_full_pieces_are_chunks_of_their_own(chunker, pipeline):
    first, second = noise(1, CHUNK), noise(2, CHUNK)
    body = chunker.add_file(entry(first, second))
    assert [plain for _, plain in pipeline.chunks] == [first, second]
    assert [(run.length, run.block) for run in body.runs] == [(CHUNK, 0), (CHUNK, 0)]


def test_small_pieces_share_a_chunk_each_at_a_block(chunker, pipeline):
    files = [noise(number, length) for number, length in enumerate([1, BLOCK, BLOCK + 1])]
    bodies = [chunker.add_file(entry(plain)) for plain in files]
    assert pipeline.chunks == []
    chunker.flush()
    ((chunk, plain),) = pipeline.chunks
    assert [[(run.chunk, run.block) for run in body.runs] for body in bodies] == [
        [(chunk, 0)], [(chunk, 1)], [(chunk, 2)],
    ]  # fmt: skip
    assert len(plain) == 3 * BLOCK + 1
    assert [read(body, pipeline) for body in bodies] == files


def test_gaps_between_small_pieces_do_not_count(chunker, pipeline):
    files = [noise(number, 100) for number in range(5 * CHUNK // BLOCK)]
    bodies = [chunker.add_file(entry(plain)) for plain in files]
    chunker.flush()
    assert [len(plain) for _, plain in pipeline.chunks] == [15 * BLOCK + 100, 3 * BLOCK + 100]
    assert [read(body, pipeline) for body in bodies] == files


def test_span_of_a_shared_chunk_is_no_longer_than_a_reader_takes(pipeline):
    chunker = Chunker(pipeline, CHUNK_DECODED_BYTES_MAX, 0, {})
    for number in range(CHUNK_DECODED_BYTES_MAX // BLOCK + 1):
        chunker.add_file(entry(number.to_bytes(3, "big") + b"x"))
    chunker.flush()
    assert [len(plain) for _, plain in pipeline.chunks] == [CHUNK_DECODED_BYTES_MAX - BLOCK + 4, 4]


def test_piece_that_does_not_fit_opens_the_next_chunk(chunker, pipeline):
    for number, length in enumerate([3 * BLOCK, BLOCK, BLOCK]):
        chunker.add_file(entry(noise(number, length)))
    chunker.flush()
    assert [len(plain) for _, plain in pipeline.chunks] == [4 * BLOCK, BLOCK]


@pytest.mark.parametrize("length", [1, 100, BLOCK, CHUNK - 1, CHUNK])
def test_same_bytes_are_stored_once(chunker, pipeline, length):
    plain = noise(5, length)
    first = chunker.add_file(entry(plain))
    second = chunker.add_file(entry(plain))
    chunker.flush()
    assert first == second
    assert len(pipeline.chunks) == 1
    assert (chunker.totals.read, chunker.totals.deduplicated) == (2 * length, length)


def test_same_beginning_is_not_the_same_piece(chunker, pipeline):
    long, short = noise(5, 1000), noise(5, 999)
    bodies = [chunker.add_file(entry(plain)) for plain in (long, short)]
    chunker.flush()
    assert [read(body, pipeline) for body in bodies] == [long, short]
    assert chunker.totals.deduplicated == 0


@pytest.mark.parametrize("piece", [bytes(CHUNK), bytes(1), Hole(CHUNK), Hole(100 * CHUNK), bytes(BLOCK + 1)])
def test_zeros_are_holes_however_they_come(chunker, pipeline, piece):
    length = piece.length if isinstance(piece, Hole) else len(piece)
    (run,) = chunker.add_file(entry(piece)).runs
    chunker.flush()
    assert (run.length, run.chunk) == (length, None)
    assert pipeline.chunks == []
    assert (chunker.totals.read, chunker.totals.holes) == (length, length)


@pytest.mark.parametrize("plain", [bytes(CHUNK - 1) + b"x", b"x" + bytes(CHUNK - 1), bytes(99) + b"\x01"])
def test_almost_zeros_are_data(chunker, pipeline, plain):
    body = chunker.add_file(entry(plain))
    chunker.flush()
    assert read(body, pipeline) == plain
    assert chunker.totals.holes == 0


@pytest.mark.parametrize("size", [0, 99, 101, 10**9])
def test_file_of_another_size_than_said_is_refused(chunker, size):
    with pytest.raises(BuildError, match=f"changed while it was read: expected {size}, found 100 .path file"):
        chunker.add_file(entry(noise(1, 100), size=size))


def test_empty_file_has_no_runs(chunker, pipeline):
    assert chunker.add_file(entry()) == NO_BYTES
    chunker.flush()
    assert pipeline.chunks == []


# --- What lies in the metadata ------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "is_inline"), [(1, True), (999, True), (1000, True), (1001, False)])
def test_smallest_files_stay_out_of_chunks(pipeline, length, is_inline):
    chunker = Chunker(pipeline, CHUNK, 1000, {})
    plain = noise(3, length)
    body = chunker.add_file(entry(plain))
    chunker.flush()
    assert read(body, pipeline) == plain
    assert body.inline == (plain if is_inline else b"")
    assert len(pipeline.chunks) == (0 if is_inline else 1)
    assert (chunker.totals.read, chunker.totals.holes, chunker.totals.deduplicated) == (length, 0, 0)


def test_files_in_the_metadata_are_bounded_together(pipeline, monkeypatch):
    """They are held in memory until it is written; what comes after them is in chunks, however small."""
    monkeypatch.setattr(chunker_module, "INLINE_BYTES_MAX", 2500)
    chunker = Chunker(pipeline, CHUNK, 1000, {})
    sizes = [1000, 1000, 501, 500, 1]
    bodies = [chunker.add_file(entry(noise(number, size))) for number, size in enumerate(sizes)]
    assert [len(body.inline) for body in bodies] == [1000, 1000, 0, 500, 0]


def test_small_tail_of_a_large_file_goes_with_the_file(pipeline):
    chunker = Chunker(pipeline, CHUNK, 1000, {})
    body = chunker.add_file(entry(noise(1, CHUNK), noise(2, 10)))
    assert body.inline == b"" and [run.length for run in body.runs] == [CHUNK, 10]


@pytest.mark.parametrize("piece", [bytes(100), Hole(100)])
def test_small_file_of_zeros_is_a_hole(pipeline, piece):
    body = Chunker(pipeline, CHUNK, 1000, {}).add_file(entry(piece))
    assert body == Body((Run(100),))


def test_small_file_whose_attributes_fill_its_block_is_in_a_chunk(pipeline):
    """Beside 64 bytes of the inode, 12 of their head, 4 for an id if they are shared, 4 and the name's 1."""
    room = (BLOCK - 64 - 12 - 4 - 999) // 4 * 4 - 4 - 1
    for length, is_inline in ((room, True), (room + 1, False)):
        small = entry(noise(1, 999))
        small.xattrs = ((b"user.x", bytes(length)),)
        body = Chunker(pipeline, CHUNK, 1000, {}).add_file(small)
        assert bool(body.inline) is is_inline


@pytest.mark.parametrize("size", [0, 99, 101, 1001])
def test_small_file_of_another_size_than_said_is_refused(pipeline, size):
    with pytest.raises(BuildError, match=f"changed while it was read: expected {size}, found 100 .path file"):
        Chunker(pipeline, CHUNK, 1000, {}).add_file(entry(noise(1, 100), size=size))


def test_piece_of_a_dictionary_is_referred_to_and_marked(pipeline):
    plain = noise(9, 500)
    first = Chunker(pipeline, CHUNK, 0, known := {})
    first.add_file(entry(plain))
    first.flush()
    foreign = PlannedChunk(PlannedBlob(), start_block=77)
    second_pipeline = RecordingPipeline()
    second = Chunker(second_pipeline, CHUNK, 0, dict.fromkeys(known, (foreign, 0)))
    (run,) = second.add_file(entry(plain)).runs
    second.flush()
    assert run.chunk is foreign
    assert foreign.used
    assert second_pipeline.chunks == []


pieces = st.lists(
    st.one_of(
        st.builds(noise, st.integers(0, 3), st.just(CHUNK)),
        st.just(bytes(CHUNK)),
        st.integers(1, 3).map(lambda count: Hole(count * CHUNK)),
    ),
    max_size=4,
)
tails = st.one_of(st.just(b""), st.builds(noise, st.integers(0, 3), st.integers(1, CHUNK - 1)))


@given(st.lists(st.tuples(pieces, tails), max_size=12), st.sampled_from([0, 1, 1000, BLOCK - 64]))
def test_any_files_come_back(files, inline_size):
    pipeline = RecordingPipeline()
    chunker = Chunker(pipeline, CHUNK, inline_size, {})
    made = []
    for start, tail in files:
        content = [*start, tail] if tail else start
        made.append((chunker.add_file(entry(*content)), content))
    chunker.flush()
    stored = sum(len(plain) for _, plain in pipeline.chunks)
    inline = sum(len(body.inline) for body, _ in made)
    unique = chunker.totals.read - chunker.totals.holes - chunker.totals.deduplicated - inline
    assert unique <= stored < unique + BLOCK * (len(files) + 1)
    for body, content in made:
        assert len(body.inline) <= inline_size
        wanted = b"".join(bytes(piece.length) if isinstance(piece, Hole) else piece for piece in content)
        assert read(body, pipeline) == wanted
    for chunk, plain in pipeline.chunks:
        assert 0 < len(plain) <= SHARED_CHUNK_SPAN * CHUNK
        assert chunk.start_block >= 0
