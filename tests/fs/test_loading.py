"""An image that was loaded whole is in memory whole, however large: nobody asks its store again."""

from support.images import build, opened
from support.trees import Planned, PlannedSource, Segment

from rafsfs.format.erofs import FileType
from rafsfs.fs.loading import load_all
from rafsfs.limits import MIB
from rafsfs.reading.page_cache import RECENT_BYTES_MAX

LARGE = Segment(RECENT_BYTES_MAX + 5 * MIB, 1)
PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"large", FileType.REGULAR, segments=(LARGE,)),
    Planned(b"tiny", FileType.REGULAR, segments=(Segment(10, 2),)),
)


def test_image_larger_than_the_queue_of_what_was_read_once_stays(tmp_path):
    reference = build(PlannedSource(PLAN), tmp_path, chunk_size=1 * MIB)
    with opened(reference) as image:
        load_all(image, 2)
        filesystem, cache = image.filesystem, image.filesystem.engine.cache
        assert cache.evictions == 0
        counts = cache.statistics.counts()
        for name, segment in ((b"large", LARGE), (b"tiny", PLAN[2].segments[0])):
            nid = filesystem.lookup(filesystem.root, name)
            parts = filesystem.try_read(nid, 0, segment.length)
            assert parts is not None and b"".join(parts) == segment.plain()
        assert cache.statistics.counts() == counts
