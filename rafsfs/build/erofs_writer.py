"""Writes a tree as an EROFS metadata section: inodes, directories, attributes, chunk indexes; reads no file.

    superblock | device table | inodes, each with its xattrs and its inline data or chunk indexes
    whole blocks of directories and long symlinks | shared xattrs

Inodes lie in tree order, the children of one directory together, so that listing and walking read few pages.
Checked against the kernel, ``fsck.erofs`` and ``dump.erofs`` in tests/integration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from rafsfs.build.source import refusal, shown
from rafsfs.build.tree import NO_BYTES, Node, Tree
from rafsfs.build.xattr_writer import XattrWriter
from rafsfs.errors import BuildError
from rafsfs.format import erofs
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE, DataLayout, FileType
from rafsfs.limits import CHUNK_INDEXES_MAX
from rafsfs.types import BlobId

CHUNK_BITS_MAX = 30  # of one chunk index, 1 GiB: erofs-utils 1.5 computes larger ones in 32 bits
_HOLE = erofs.CHUNK_INDEX.pack(erofs.ChunkIndex(0, 0, erofs.NULL_BLOCK))


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device slot says of a blob."""

    blob_id: BlobId
    decoded_blocks: int


@dataclass(slots=True, eq=False)
class _Placed:
    """An inode with its place and what goes behind it."""

    node: Node
    offset: int
    layout: DataLayout
    size: int
    union: int
    xattrs: bytes
    tail: bytes  # inline data or chunk indexes
    tail_align: int
    blocks: bytes  # whole blocks elsewhere in the section


def write_erofs(tree: Tree, devices: Sequence[DeviceInfo]) -> bytes:
    """Make the section, a whole number of 4 KiB blocks; sets every node's ``nid``. Raises BuildError."""
    return ErofsWriter(tree, len(devices)).finish(devices)


class ErofsWriter:
    """Writes a section in two steps, because a blob's name is known only when its last chunk is encoded."""

    def __init__(self, tree: Tree, device_count: int) -> None:
        """Write everything but the superblock; sets every node's ``nid``. Raises BuildError."""
        self._tree = tree
        self._placed: list[_Placed] = []
        self._cursor = erofs.SUPERBLOCK_OFFSET + erofs.SUPERBLOCK.size + device_count * erofs.DEVICE_SLOT.size
        self._directory_sizes: dict[Node, list[list[bytes]]] = {}
        self._device_count = device_count
        self._shared_block = 0
        self._section = self._write()

    def finish(self, devices: Sequence[DeviceInfo]) -> bytes:
        """Return the section with its superblock and device table."""
        assert len(devices) == self._device_count
        self._write_superblock(self._section, devices)
        section, self._section = bytes(self._section), bytearray()
        return section

    def _write(self) -> bytearray:
        order = self._inode_order()
        xattrs = XattrWriter(node.entry.xattrs for node in order)
        for node in order:
            try:
                area = xattrs.inline(node.entry.xattrs)
            except BuildError as error:
                raise error.at(path=shown(node.entry.path)) from None
            self._place(node, area)
        inodes_end = erofs.align(self._cursor, BLOCK_SIZE)
        blocks_start = inodes_end >> BLOCK_BITS
        self._fill_directories()
        section = bytearray(inodes_end)
        block = blocks_start
        for number, placed in enumerate(self._placed):
            if placed.blocks:
                placed.union = block
                block += len(placed.blocks) >> BLOCK_BITS
            self._write_inode(section, placed, number + 1)
        for placed in self._placed:
            section += placed.blocks
        if xattrs.shared_area:
            self._shared_block = len(section) >> BLOCK_BITS
        section += xattrs.shared_area
        section += bytes(-len(section) % BLOCK_SIZE)
        return section

    def _inode_order(self) -> list[Node]:
        """Every inode once: the root, then for each directory its children; counts links on the way."""
        root = self._tree.root
        assert root is not None
        order = [root]
        root.links = 2
        for directory, _ in self._tree.directories():
            for _, child in directory.sorted_children():
                if child.is_directory:
                    child.links = 2
                    directory.links += 1
                    order.append(child)
                else:
                    child.links += 1
                    if child.links == 1:
                        order.append(child)
        return order

    def _place(self, node: Node, xattrs: bytes) -> None:
        kind = node.entry.kind
        layout, size, union, tail, tail_align, blocks = DataLayout.FLAT_PLAIN, 0, 0, b"", 1, b""
        head = erofs.EXTENDED_INODE.size + len(xattrs)
        if node.body.inline:
            size = len(node.body.inline)
            layout, tail, blocks = _flat(node.body.inline, head)
            assert layout is DataLayout.FLAT_INLINE  # the chunker saw to it
        elif kind is FileType.REGULAR and node.entry.size:
            layout, size, tail_align = DataLayout.CHUNK_BASED, node.entry.size, erofs.CHUNK_INDEX.size
            union, tail = _chunk_indexes(node)
        elif kind is FileType.SYMLINK:
            size = len(node.entry.target)
            layout, tail, blocks = _flat(node.entry.target, head)
        elif kind in (FileType.CHARACTER, FileType.BLOCK):
            union = _device_number(node)
        elif kind is FileType.DIRECTORY:
            groups = _group_names(node)
            self._directory_sizes[node] = groups
            size = (len(groups) - 1) * BLOCK_SIZE + _group_bytes(groups[-1])
            layout, tail, blocks = _flat(bytes(size), head)  # filled in when all nids are known
        offset = erofs.align(self._cursor, erofs.NID_SLOT_BYTES)
        if layout is DataLayout.FLAT_INLINE and (offset + head) % BLOCK_SIZE + len(tail) > BLOCK_SIZE:
            offset = erofs.align(offset, BLOCK_SIZE)
        node.nid = offset // erofs.NID_SLOT_BYTES
        self._cursor = erofs.align(offset + head, tail_align) + len(tail)
        self._placed.append(_Placed(node, offset, layout, size, union, xattrs, tail, tail_align, blocks))

    def _fill_directories(self) -> None:
        placed_of = {placed.node: placed for placed in self._placed if placed.node.is_directory}
        for directory, parent in self._tree.directories():
            placed = placed_of[directory]
            data = _directory_data(self._directory_sizes[directory], directory, parent)
            whole = len(placed.blocks)
            if placed.layout is DataLayout.FLAT_INLINE:
                placed.blocks, placed.tail = data[:whole], data[whole:]
            else:
                placed.blocks = data + bytes(whole - len(data))

    def _write_inode(self, section: bytearray, placed: _Placed, number: int) -> None:
        entry = placed.node.entry
        seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
        inode = erofs.ExtendedInode(
            format=erofs.inode_format(placed.layout),
            xattr_icount=_icount(placed.xattrs),
            mode=erofs.MODE_OF_FILE_TYPE[entry.kind] | entry.permissions,
            reserved=0,
            size=placed.size,
            union=placed.union,
            ino=number & 0xFFFF_FFFF,
            uid=entry.uid,
            gid=entry.gid,
            mtime=seconds,
            mtime_nsec=nanoseconds,
            nlink=placed.node.links,
        )
        head = erofs.EXTENDED_INODE.pack(inode) + placed.xattrs
        section[placed.offset : placed.offset + len(head)] = head
        tail_start = erofs.align(placed.offset + len(head), placed.tail_align)
        section[tail_start : tail_start + len(placed.tail)] = placed.tail
        placed.tail = b""  # it may be a file, and there may be many
        placed.node.body = NO_BYTES

    def _write_superblock(self, section: bytearray, devices: Sequence[DeviceInfo]) -> None:
        slots = b"".join(
            erofs.DEVICE_SLOT.pack(erofs.DeviceSlot(device.blob_id.hex().encode(), device.decoded_blocks, 0))
            for device in devices
        )
        table_start = erofs.DEVICE_TABLE_SLOT * erofs.DEVICE_SLOT.size
        section[table_start : table_start + len(slots)] = slots
        root = self._tree.root
        assert root is not None
        superblock = erofs.Superblock(
            magic=erofs.SUPERBLOCK_MAGIC,
            checksum=0,
            feature_compat=0,
            block_bits=BLOCK_BITS,
            extension_slots=0,
            root_nid=root.nid,
            inode_count=len(self._placed),
            epoch=0,
            fixed_nsec=0,
            blocks=len(section) >> BLOCK_BITS,
            meta_blkaddr=0,
            xattr_blkaddr=self._shared_block,
            uuid=blake3(section).digest(16),
            volume_name=bytes(16),
            feature_incompat=erofs.FEATURE_INCOMPAT_OURS if devices else erofs.FEATURE_INCOMPAT_CHUNKED_FILE,
            compression_algorithms=0,
            extra_devices=len(devices),
            device_table_slot=erofs.DEVICE_TABLE_SLOT if devices else 0,
        )
        start = erofs.SUPERBLOCK_OFFSET
        section[start : start + erofs.SUPERBLOCK.size] = erofs.SUPERBLOCK.pack(superblock)


def _icount(xattrs: bytes) -> int:
    """``i_xattr_icount`` of an inline area (inverse of erofs_xattr_ibody_size)."""
    return (len(xattrs) - erofs.XATTR_HEADER.size) // erofs.XATTR_SHARED_ID_BYTES + 1 if xattrs else 0


def _flat(data: bytes, head: int) -> tuple[DataLayout, bytes, bytes]:
    """Split bytes that live in the metadata into (layout, inline tail, whole blocks)."""
    tail_length = len(data) % BLOCK_SIZE
    if not tail_length:
        return DataLayout.FLAT_PLAIN, b"", data
    # the tail has to lie inside one block together with the end of its inode
    if head % BLOCK_SIZE + tail_length > BLOCK_SIZE:
        return DataLayout.FLAT_PLAIN, b"", data + bytes(BLOCK_SIZE - tail_length)
    return DataLayout.FLAT_INLINE, data[len(data) - tail_length :], data[: len(data) - tail_length]


def _device_number(node: Node) -> int:
    major, minor = node.entry.rdev
    if major >= 1 << 12 or minor >= 1 << 20:
        raise refusal(
            node.entry.path,
            "device number does not fit EROFS",
            expected="12 and 20 bits",
            found=(major, minor),
        )
    return erofs.encode_device_number(major, minor)


def _group_names(directory: Node) -> list[list[bytes]]:
    """Split a directory's sorted names, ``.`` and ``..`` among them, into blocks of 4 KiB."""
    groups: list[list[bytes]] = [[]]
    used = 0
    for name in sorted([b".", b"..", *(directory.children or {})]):
        cost = erofs.DIRENT.size + len(name)
        if used + cost > BLOCK_SIZE:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += cost
    return groups


def _group_bytes(names: list[bytes]) -> int:
    return sum(erofs.DIRENT.size + len(name) for name in names)


def _directory_data(groups: list[list[bytes]], directory: Node, parent: Node) -> bytes:
    children = {b".": directory, b"..": parent, **(directory.children or {})}
    blocks = []
    for names in groups:
        position = len(names) * erofs.DIRENT.size
        dirents = []
        for name in names:
            child = children[name]
            dirents.append(erofs.DIRENT.pack(erofs.Dirent(child.nid, position, child.entry.kind, 0)))
            position += len(name)
        block = b"".join(dirents) + b"".join(names)
        blocks.append(block if names is groups[-1] else block + bytes(BLOCK_SIZE - len(block)))
    return b"".join(blocks)


def _chunk_indexes(node: Node) -> tuple[int, bytes]:
    """``i_u`` and the chunk index array of a regular file: as few indexes as its runs allow."""
    extents = _merged_extents(node)
    bits = min(CHUNK_BITS_MAX, max(BLOCK_BITS, (node.entry.size - 1).bit_length()))
    position = 0
    for length, _, _ in extents[:-1]:
        position += length
        bits = min(bits, (position & -position).bit_length() - 1)
    if bits < BLOCK_BITS:
        raise BuildError("file's pieces are not aligned to blocks", found=position)
    if (count := -(-node.entry.size >> bits)) > CHUNK_INDEXES_MAX:
        raise refusal(
            node.entry.path,
            "file is too large for its chunks",
            expected=f"at most {CHUNK_INDEXES_MAX} of {1 << bits} bytes",
            found=count,
            hint="build with larger chunks, or leave it out with --exclude",
        )
    indexes = []
    for length, device, block in extents:
        if device is None:
            indexes.append(_HOLE * -(-length >> bits))
            continue
        for start in range(0, length, 1 << bits):
            index = erofs.ChunkIndex(0, device, block + (start >> BLOCK_BITS))
            indexes.append(erofs.CHUNK_INDEX.pack(index))
    return erofs.CHUNK_FORMAT_INDEXES | (bits - BLOCK_BITS), b"".join(indexes)


def _merged_extents(node: Node) -> list[tuple[int, int | None, int]]:
    """(length, device slot or None, first block), neighbours joined where decoded space goes on unbroken."""
    extents: list[tuple[int, int | None, int]] = []
    for run in node.body.runs:
        device: int | None = None
        block = 0
        if run.chunk is not None:
            assert run.chunk.blob.index is not None and run.chunk.start_block >= 0
            device, block = run.chunk.blob.index + 1, run.chunk.start_block + run.block
        if extents:
            length, last_device, last_block = extents[-1]
            follows = device is None or block == last_block + (length >> BLOCK_BITS)
            if device == last_device and follows:
                extents[-1] = (length + run.length, device, last_block)
                continue
        extents.append((run.length, device, block))
    return extents


def count_kinds(tree: Tree) -> Counter[FileType]:
    """How many inodes of each kind the tree holds; call after ``write_erofs``."""
    assert tree.root is not None
    seen: dict[int, FileType] = {tree.root.nid: FileType.DIRECTORY}
    for directory, _ in tree.directories():
        seen.update((child.nid, child.entry.kind) for _, child in directory.sorted_children())
    return Counter(seen.values())
