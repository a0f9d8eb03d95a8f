"""Bent EROFS trees, sealed correctly, under the kernel's EROFS: it lives, and shows what we show."""

import os
import random
from pathlib import Path

import pytest
from attacks.fuzz_mutation import NUMBERS
from attacks.kernel_twin import Refusal, kernel_mount, shown_by_kernel, shown_by_us
from attacks.sealing import ForgedSection, plain_blob, seal
from attacks.surgery import KEY, check_fails, put
from support.images import build, export_erofs, opened
from support.mounts import mounted, rafsfs

from rafsfs.errors import RafsError
from rafsfs.format import erofs
from rafsfs.format.chunk import Suite
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root, pytest.mark.timeout(200)]

IMAGES = int(os.environ.get("RAFSFS_EXAMPLES", "100"))
CHUNK_BYTES = 1 << 16
ALARMS = (
    "BUG:",
    "Oops",
    "WARNING:",
    "Call Trace",
    "general protection",
    "blocked for more than",
    "refcount_t",
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The EROFS section and the decoded space of a tree that has some of everything."""
    folder = tmp_path_factory.mktemp("honest")
    tree = folder / "tree"
    (tree / "d" / "many").mkdir(parents=True)
    for number in range(30):
        file = tree / "d" / f"f{number:02}"
        file.write_bytes(b"%d" % number * (number * 37))
        os.setxattr(file, "user.color", b"green")  # shared
        os.setxattr(file, "user.number", b"%d" % number)
    for number in range(60):
        (tree / "d" / "many" / (f"{number:02}" * 40)).touch()  # two blocks of names
    (tree / "big").write_bytes(os.urandom(20_000))
    with (tree / "hole").open("wb") as file:
        file.write(b"a" * 5000)
        file.seek(40_960)
        file.write(b"b" * 9000)
    (tree / "link").symlink_to("d/f01")
    (tree / "long link").symlink_to("x/" * 500)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.link(tree / "big", tree / "d" / "again")
    with opened(build(tree, folder / "img", chunk_size=4096)) as image:
        metadata, (device,) = export_erofs(image, folder)
    return metadata.read_bytes(), device.read_bytes()


def bend(chance, section):
    """Change a few numbers, mostly in one place, anywhere but in the superblock and the device slot."""
    start = (erofs.DEVICE_TABLE_SLOT + 1) * erofs.DEVICE_SLOT.size
    used = [offset for offset in range(start, len(section) - 8, 4) if any(section[offset : offset + 4])]
    bent = bytearray(section)
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        offset = chance.choice(used) + chance.choice((0, 0, 1, 2, 3))
        width = chance.choice((1, 1, 2, 4, 8))
        if chance.random() < 0.5:
            bent[offset] ^= 1 << chance.randrange(8)
        else:
            number = (chance.choice(NUMBERS) + chance.choice((0, 0, -1, 1))) % (1 << 8 * width)
            bent[offset : offset + width] = number.to_bytes(width, "little")
    return bytes(bent[: len(section)])


@pytest.fixture
def alarms():
    """Gives what the kernel complained of since the test began that is about more than the image."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)

    def since():
        found = []
        while True:
            try:
                line = os.read(log, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:  # lines were lost, the next read goes on
                continue
            found += [line] if any(alarm in line for alarm in ALARMS) else []

    yield since
    os.close(log)


def differences(ours, kernels):
    """What both show, and show differently. Either may refuse what the other shows."""
    for path in ours.keys() & kernels.keys():
        for question in ours[path].keys() & kernels[path].keys():
            answers = ours[path][question], kernels[path][question]
            if not any(isinstance(answer, Refusal) for answer in answers) and answers[0] != answers[1]:
                yield path, question, *answers


def test_a_bent_tree_harms_no_kernel_and_looks_the_same_from_both_sides(honest, tmp_path, alarms, tally):
    section, device = honest
    chunks = [device[start : start + CHUNK_BYTES] for start in range(0, len(device), CHUNK_BYTES)]
    blob = plain_blob(Suite.AES_256_GCM, *chunks)
    for seed in range(IMAGES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            with opened(put(seal(bend(random.Random(seed), section), [blob]), folder / "image")) as image:
                ours = shown_by_us(image.filesystem)
                metadata, devices = export_erofs(image, folder)
        except RafsError:
            tally("bent trees refused before the kernel saw them", 1)
            continue
        try:
            with kernel_mount(metadata, devices) as root:
                kernels = shown_by_kernel(root)
        except OSError:  # its root is refused
            tally("bent trees that only the kernel refuses", 1)
            continue
        assert list(differences(ours, kernels)) == [], f"seed {seed}"
        tally("bent trees shown by both", 1)
        refused = [
            sum(isinstance(answer, Refusal) for found in shown.values() for answer in found.values())
            for shown in (ours, kernels)
        ]
        tally("answers refused by us", refused[0])
        tally("answers refused by the kernel", refused[1])
    assert alarms() == []


SUPERBLOCKS = {
    "a checksum": {"feature_compat": 1, "checksum": 5},
    "filters of xattrs": {"feature_compat": 4},
    "a longer superblock": {"extension_slots": 255},
    "compression": {"compression_algorithms": 0xFFFF},
    "more blocks than there are": {"blocks": 2**32 - 1},
    "fewer blocks": {"blocks": 1},
}


@pytest.mark.parametrize("lie", [*SUPERBLOCKS, "prefixes of xattrs", "a device's place"])
def test_a_superblock_that_speaks_to_other_parts_of_the_kernel_is_not_shown_to_it(tmp_path, lie):
    section = ForgedSection(devices=[1])
    section.directory([], nid=section.root)
    packed = bytearray(section.pack(**SUPERBLOCKS.get(lie, {})))
    if lie == "prefixes of xattrs":
        packed[erofs.SUPERBLOCK_OFFSET + 91] = 200  # xattr_prefix_count of erofs_fs.h
    if lie == "a device's place":
        packed[erofs.DEVICE_TABLE_SLOT * erofs.DEVICE_SLOT.size + 68] = 1  # mapped_blkaddr
    reference = put(seal(bytes(packed), [plain_blob(Suite.AES_256_GCM, bytes(4096))]), tmp_path / "image")
    assert check_fails(reference)
    save_key(KEY, tmp_path / "key")
    (tmp_path / "m").mkdir()
    options = ("--key", tmp_path / "key", "--allow-other", "--frontend", "erofs")
    done = rafsfs("mount", reference.folder, tmp_path / "m", *options)
    assert (done.returncode, done.stdout) == (9, "")
    assert "EROFS superblock" in done.stderr or "EROFS device slot 1 is not of its blob" in done.stderr
    assert done.stderr.count("\n") == 1
    assert mounted(tmp_path / "m") is None


def test_an_honest_tree_is_refused_by_neither(honest, tmp_path):
    section, device = honest
    with opened(put(seal(section, [plain_blob(Suite.AES_256_GCM, device)]), tmp_path / "image")) as image:
        ours = shown_by_us(image.filesystem)
        metadata, devices = export_erofs(image, tmp_path)
    with kernel_mount(metadata, devices) as root:
        assert shown_by_kernel(Path(root)) == ours
    assert not any(isinstance(answer, Refusal) for found in ours.values() for answer in found.values())
    assert len(ours) > 95
