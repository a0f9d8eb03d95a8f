"""A sample of the attacks on stored bytes, through mounts: honest bytes are seen, or an error (2, 3, 5)."""

import errno
import os
import shutil
import stat
from collections import Counter
from dataclasses import replace

import pytest
from attacks.surgery import KEY, put
from support.mounts import mounted, rafsfs, umount

from rafsfs.cli.mount import FRONTENDS
from rafsfs.format.blob import TOC_ENTRY, parse_footer
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.format.chunk import Suite
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]


def flipped(data, *offsets):
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] ^= 0x01
    return bytes(changed)


def chunks_of(data):
    footer = parse_footer(data, len(data))
    entries = TOC_ENTRY.iter_unpack(data[footer.toc_offset :][: footer.toc_length])
    return [(entry.encoded_offset, entry.encoded_length) for entry in entries]


# --- What is changed: an image, and another one of the same sizes -> the first with a change ----------------


def chunk_bytes(place):
    """One byte of each chunk, so many 256ths behind its start."""

    def change(image, _):
        (blob,) = image.blobs
        offsets = [offset + length * place // 256 for offset, length in chunks_of(blob.data)]
        return replace(image, blobs=(blob.changed(flipped(blob.data, *offsets)),))

    return change


def chunks_swapped(image, _):
    (blob,) = image.blobs
    (first, length), (second, _) = chunks_of(blob.data)[:2]
    data = bytearray(blob.data)
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )
    return replace(image, blobs=(blob.changed(bytes(data)),))


def blob_of_another_image(image, other):
    return replace(image, blobs=(image.blobs[0].changed(other.blobs[0].data),))


def blob_cut(image, _):
    (blob,) = image.blobs
    return replace(image, blobs=(blob.changed(blob.data[: len(blob.data) // 2]),))


def bootstrap_bytes(part, place):
    """One byte of a part of the bootstrap."""

    def change(image, _):
        data = getattr(image.bootstrap, part)
        parts = {part: flipped(data, len(data) * place // 256)}
        return replace(image, bootstrap=replace(image.bootstrap, **parts))

    return change


def page_bytes(image, _):
    """One byte of each page but the first, which every mount needs."""
    pages = list(PAGE_ENTRY.iter_unpack(image.bootstrap.page_table))[1:]
    offsets = [page.encoded_offset + page.encoded_length // 2 for page in pages]
    return replace(image, bootstrap=replace(image.bootstrap, pages=flipped(image.bootstrap.pages, *offsets)))


def pages_of_another_image(image, other):
    return replace(image, bootstrap=replace(image.bootstrap, pages=other.bootstrap.pages))


def bootstrap_cut(image, _):
    return replace(image, bootstrap_bytes=image.bootstrap.pack()[:-1])


ATTACKS = {
    **{f"a byte of each chunk, {place}/256": chunk_bytes(place) for place in (0, 100, 255)},
    "chunks swapped": chunks_swapped,
    "a blob of another image": blob_of_another_image,
    "a blob cut": blob_cut,
    **{
        f"a byte of the {part}": bootstrap_bytes(part, 128)
        for part in ("superblock", "envelope", "page_table")
    },
    "a byte of each page": page_bytes,
    "pages of another image": pages_of_another_image,
    "the bootstrap cut": bootstrap_cut,
}


# --- What is seen -------------------------------------------------------------------------------------------


def shown(path):
    """All that a program sees of a file."""
    status = path.lstat()
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in user_xattrs(path)}
    if stat.S_ISDIR(status.st_mode):
        content, size = sorted(os.listdir(path)), None  # noqa: PTH208  # names, not paths
    elif stat.S_ISLNK(status.st_mode):
        content, size = path.readlink(), status.st_size
    else:
        content, size = path.read_bytes(), status.st_size
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs, size, content


def user_xattrs(path):
    return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]


def errors_of(directory, tree):
    """How many files of the mount are errors; what is no error is as in the tree."""
    errors = 0
    for path in [tree, *sorted(tree.rglob("*"))]:
        try:
            seen = shown(directory / path.relative_to(tree))
        except OSError as error:
            assert error.errno == errno.EIO
            errors += 1
        else:
            assert seen == shown(path)
    return errors


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_mount_of_a_changed_image_is_refused_or_shows_errors(target, tree, tmp_path, tally, frontend):
    image, other = target(Suite.AES_256_GCM).stored, target(Suite.AES_256_GCM, seed=2).stored
    save_key(KEY, tmp_path / "key")
    (tmp_path / "m").mkdir()
    options = ("--key", tmp_path / "key", "--allow-other", "--frontend", frontend)
    outcomes = Counter()
    for name, attack in {"nothing": lambda image, _: image, **ATTACKS}.items():
        put(attack(image, other), tmp_path / "img")
        done = rafsfs("mount", tmp_path / "img", tmp_path / "m", *options)
        if done.returncode:
            assert name != "nothing"
            assert (done.stdout, done.stderr.count("\n")) == ("", 1)
            assert mounted(tmp_path / "m") is None
            outcomes["refused by mounts"] += 1
        else:
            try:
                errors = errors_of(tmp_path / "m", tree(1))
            finally:
                umount(tmp_path / "m")
            assert (errors > 0) == (name != "nothing"), name
            outcomes["shown as errors by mounts"] += name != "nothing"
        shutil.rmtree(tmp_path / "img")
    for outcome, count in outcomes.items():
        tally(f"attacks {outcome}", count)
