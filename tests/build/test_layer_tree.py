"""Layers over each other: what is left in the end, and what is refused."""

import gzip
import tarfile

import pytest
from support.stock import digest_of, layer, link, member, symlink

from rafsfs.build import layer_reader, layer_tree
from rafsfs.build.layer_reader import StockLayer
from rafsfs.build.layered_source import LayeredSource
from rafsfs.build.source import Hole
from rafsfs.errors import BuildError, DigestMismatch, RafsError
from rafsfs.format.erofs import FileType


class Memory:
    """A stored file in memory."""

    def __init__(self, data):
        self.name = "memory"
        self.data = data
        self.size = len(data)

    def read_range(self, offset, length):
        assert offset >= 0 and offset + length <= self.size
        return self.data[offset : offset + length]

    def close(self):
        self.data = None


def stock_layer(data, **fields):
    known = {"name": "layer", "digest": digest_of(data), "diff_id": digest_of(data), "size": len(data)}
    return StockLayer(open=lambda: Memory(data), **(known | fields))


def left(*layers):
    """Path -> bytes of a file, target of a link, dict of attributes of all else; names of one inode share."""
    found = {}
    for entry in LayeredSource([stock_layer(data) for data in layers]).entries():
        path = entry.path.decode()
        if path:
            parent = path.rpartition("/")[0]
            assert isinstance(found[parent], dict), "parents come first, and are directories"
        assert path not in found
        if entry.hard_link_to is not None:
            found[path] = found[entry.hard_link_to.decode()]
        elif entry.kind is FileType.REGULAR:
            pieces = entry.content(4096) if entry.content else ()
            found[path] = b"".join(bytes(p.length) if isinstance(p, Hole) else p for p in pieces)
        elif entry.kind is FileType.SYMLINK:
            found[path] = entry.target.decode()
        else:
            found[path] = {"kind": entry.kind, "mode": entry.permissions}
    del found[""]
    return found


def names(*layers):
    return sorted(left(*layers))


LOWER = layer(
    member("dir/"),
    member("dir/a", b"lower a"),
    member("dir/b", b"lower b"),
    member("dir/deep/"),
    member("dir/deep/c", b"lower c"),
    member("file", b"lower file"),
)


def test_one_layer():
    assert left(LOWER) == {
        "dir": {"kind": FileType.DIRECTORY, "mode": 0o755},
        "dir/a": b"lower a",
        "dir/b": b"lower b",
        "dir/deep": {"kind": FileType.DIRECTORY, "mode": 0o755},
        "dir/deep/c": b"lower c",
        "file": b"lower file",
    }


def test_upper_file_wins():
    assert left(LOWER, layer(member("file", b"upper")))["file"] == b"upper"


def test_directory_over_directory_takes_its_attributes_and_keeps_its_names():
    found = left(LOWER, layer(member("dir", mode=0o700)))
    assert found["dir"]["mode"] == 0o700 and found["dir/a"] == b"lower a"


def test_file_over_directory_and_directory_over_file():
    found = left(LOWER, layer(member("dir", b"a file now"), member("file/"), member("file/in", b"x")))
    assert found == {
        "dir": b"a file now",
        "file": {"kind": FileType.DIRECTORY, "mode": 0o755},
        "file/in": b"x",
    }


def test_whiteouts_of_file_and_directory():
    assert names(LOWER, layer(member(".wh.file", b""), member("dir/.wh.deep", b""))) == [
        "dir",
        "dir/a",
        "dir/b",
    ]


def test_whiteout_hides_only_lower_layers_wherever_it_stands():
    for order in (0, 1):
        members = [member(".wh.dir", b""), member("dir/new", b"new")]
        upper = layer(*(members if order else members[::-1]))
        assert names(LOWER, upper) == ["dir", "dir/new", "file"]


def test_opaque_directory_hides_only_lower_layers_wherever_it_stands():
    members = [member("dir/"), member("dir/.wh..wh..opq", b""), member("dir/new", b"new")]
    for order in (members, members[::-1]):
        assert names(LOWER, layer(*order)) == ["dir", "dir/new", "file"]


def test_opaque_root():
    assert names(LOWER, layer(member(".wh..wh..opq", b""), member("only", b""))) == ["only"]


def test_whiteouts_of_nothing_and_of_aufs_say_nothing():
    upper = layer(
        member(".wh.absent", b""),
        member("no/such/.wh.thing", b""),
        member("file/.wh.below", b""),
        member(".wh.", b""),
        member("dir/.wh.", b""),
        member("dir/.wh..wh.aufs", b""),
        member(".wh..wh.plnk/"),
        member(".wh..wh.plnk/1.2", b"x"),
        member("dir/.wh..wh.orph/deep/", b""),
        member("dir/.wh..wh.orph/deep/.wh.a", b""),
        member("absent/.wh..wh..opq", b""),
    )
    assert names(LOWER, upper) == names(LOWER)


def test_name_that_was_removed_can_come_again():
    assert left(LOWER, layer(member(".wh.file", b"")), layer(member("file", b"again")))["file"] == b"again"


def test_hard_link_to_a_lower_layer():
    found = left(LOWER, layer(link("dir/linked", "dir/a"), member(".wh.file", b"")))
    assert found["dir/linked"] is found["dir/a"]


def test_hard_link_keeps_an_inode_whose_first_name_is_replaced():
    found = left(LOWER, layer(link("kept", "file")), layer(member("file", b"other")))
    assert (found["kept"], found["file"]) == (b"lower file", b"other")


def test_duplicate_names_in_a_layer():
    assert left(layer(member("a", b"1"), link("b", "a"), member("a", b"2"))) == {"a": b"2", "b": b"1"}


def test_hard_link_to_itself_changes_nothing():
    assert left(LOWER, layer(link("file", "file")))["file"] == b"lower file"


def test_parents_that_nobody_wrote_are_made():
    assert left(layer(member("x/y/z", b"z")))["x/y"] == {"kind": FileType.DIRECTORY, "mode": 0o755}


@pytest.mark.parametrize("target", ["usr/bin", "/usr/bin", "../../usr/bin", "usr/./bin/../bin/"])
def test_parent_that_is_a_symbolic_link_is_followed_inside_the_image(target):
    lower = layer(member("usr/bin/"), symlink("bin", target))
    upper = layer(member("bin/tool", b"tool"), link("again", "bin/tool"))
    found = left(lower, upper, layer(member("bin/.wh.old", b"")))
    assert found["usr/bin/tool"] == b"tool" and found["again"] is found["usr/bin/tool"]
    assert "bin/tool" not in found and isinstance(found["bin"], str)


def test_directory_takes_the_place_of_a_symbolic_link():
    lower = layer(member("usr/"), symlink("bin", "usr"))
    assert names(lower, layer(member("bin/"), member("bin/x", b""))) == ["bin", "bin/x", "usr"]


def test_devices_and_fifos():
    data = layer(
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), member("pipe", type=tarfile.FIFOTYPE)
    )
    assert {name: value["kind"] for name, value in left(data).items()} == {
        "null": FileType.CHARACTER,
        "pipe": FileType.FIFO,
    }


HOSTILE = {
    "up and out": [member("../out", b"")],
    "up in the middle": [member("a/../../out", b"")],
    "whiteout of the parent": [member("dir/.wh...", b"")],
    "whiteout of itself": [member("dir/.wh..", b"")],
    "root is a file": [member(".", b"x")],
    "root is a link": [symlink(".", "/etc")],
    "link to what is not there": [link("a", "absent")],
    "link out": [link("a", "../../etc/passwd")],
    "link to what the layer removes": [member(".wh.file", b""), link("a", "file")],
    "link to a directory": [link("a", "dir")],
    "parent is a file": [member("file/below", b"")],
    "links in a circle": [symlink("x", "y"), symlink("y", "x"), member("x/z", b"")],
    "name of 256 bytes": [member("n" * 256, b"")],
    "path of 5,000 bytes": [member("/".join(["n" * 250] * 20), b"")],
    "long path by way of a link": [
        member("/".join(["n" * 250] * 12) + "/"),
        symlink("s", "/".join(["n" * 250] * 12)),
        member("s/" + "/".join(["m" * 250] * 12), b""),
    ],
    "device number out of range": [member("d", type=tarfile.CHRTYPE, devmajor=1 << 15, devminor=0)],
    "attribute that cannot be stored": [
        member("a", b"", pax_headers={"SCHILY.xattr.system.odd": "x"}),
    ],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused(case):
    with pytest.raises(BuildError) as caught:
        left(LOWER, layer(*HOSTILE[case]))
    assert str(caught.value).isprintable()


def test_absolute_names_stay_inside():
    assert names(layer(member("/etc/passwd", b"x"))) == ["etc", "etc/passwd"]


@pytest.mark.parametrize("field", ["digest", "diff_id"])
def test_wrong_digest_is_refused_before_anything_is_given(field):
    source = LayeredSource([stock_layer(LOWER), stock_layer(LOWER, **{field: digest_of(b"other")})])
    with pytest.raises(DigestMismatch, match="image names"):
        next(source.entries())


def test_layer_that_changes_between_the_passes_is_refused():
    versions = [LOWER, layer(*(member(f"dir/{name}", b"evil!!!") for name in "ab"))]
    changing = StockLayer(
        "layer", digest_of(LOWER), digest_of(LOWER), len(LOWER), lambda: Memory(versions.pop(0))
    )
    with pytest.raises(RafsError):
        for entry in LayeredSource([changing]).entries():
            if entry.content:
                list(entry.content(4096))


def test_bytes_behind_the_archive_are_hashed_too():
    longer = LOWER + bytes(10240)
    assert names(longer) == names(LOWER)
    with pytest.raises(DigestMismatch):
        names_of = LayeredSource([stock_layer(longer, diff_id=digest_of(LOWER))])
        next(names_of.entries())


def test_every_cut_of_a_layer_is_refused(tally):
    for length in range(0, len(LOWER), 97):
        with pytest.raises(RafsError):
            left_of = LayeredSource([stock_layer(LOWER[:length], diff_id=digest_of(LOWER))])
            next(left_of.entries())
    tally("cuts of layers refused", len(LOWER) // 97 + 1)


def test_bounds_on_files_and_names(monkeypatch):
    monkeypatch.setattr(layer_tree, "LAYER_MEMBERS_MAX", 6)
    assert len(left(LOWER)) == 6
    with pytest.raises(BuildError, match="too many files"):
        left(LOWER, layer(member("one more", b"")))
    monkeypatch.undo()
    monkeypatch.setattr(layer_tree, "LAYER_NAMES_BYTES_MAX", 100)
    with pytest.raises(BuildError, match="too long"):
        left(layer(symlink("a", "b" * 100)))


def test_bomb_is_refused_when_it_is_out_of_proportion(monkeypatch):
    """2,000 times its stored size is allowed, from 1 GiB on; the test's limits are smaller."""
    monkeypatch.setattr(layer_reader, "GIB", 1 << 20)
    monkeypatch.setattr(layer_reader, "LAYER_EXPANSION_MAX", 100)
    plain = layer(member("zeros", bytes(8 << 20)))
    packed = gzip.compress(plain, mtime=0)
    bomb = StockLayer("bomb", digest_of(packed), digest_of(plain), len(packed), lambda: Memory(packed))
    with pytest.raises(BuildError, match="expands too far"):
        next(LayeredSource([bomb]).entries())


@pytest.mark.parametrize("cut", ["end mark", "padding and end mark"])
def test_layer_without_an_end_is_read_when_its_digest_fits(cut):
    """As umoci writes them, and Go reads them."""
    data = layer(member("a", b"a"), member("last", b"x" * 700))
    end = data.rindex(b"x") + 1
    data = data[:end] if cut.startswith("padding") else data[: end + -end % 512]
    assert left(data) == {"a": b"a", "last": b"x" * 700}
    with pytest.raises(DigestMismatch):
        next(LayeredSource([stock_layer(data, diff_id=digest_of(LOWER))]).entries())
