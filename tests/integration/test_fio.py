"""fio reads what fio wrote, and checks every block of it: all engines and patterns on all front ends.

Runs end with the file's end, not with a time. Every block has a header of fio's with a checksum of the rest.
"""

import json
import subprocess

import pytest
from support.images import KEY, build
from support.mounts import flip, mounting

from rafsfs.cli.mount import FRONTENDS
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root, pytest.mark.timeout(180)]

KIB = 1 << 10
SIZE = 1 << 20
SMALLEST = 4 * KIB
ENGINES = ("libaio", "psync", "mmap")
PATTERNS = (("randread", 4), ("randread", 64), ("read", 128))
JOBS = (1, 4, 16)

GLOBAL = f"""
[global]
disk_util=0
size={SIZE}
verify=crc32c
verify_interval={SMALLEST}
verify_fatal=1
thread=1
"""


def fio(work, *sections, check=True):
    """Run a job file; returns the jobs of the report."""
    (work / "jobs").write_text(GLOBAL + "\n".join(sections))
    command = ["fio", "--output-format=json", f"--output={work}/report", work / "jobs"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if check:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode != 0, "fio takes wrong bytes for right ones"
    report = (work / "report").read_text()
    return json.loads(report[report.index("{\n") :])["jobs"]  # what threads say comes before it


def write(path, kib):
    """Have fio write a file in blocks, of which a half can be compressed."""
    fio(
        path.parent.parent,
        f"[write]\nfilename={path}\nrw=randwrite\nbs={kib}k\ndo_verify=0\nfsync_on_close=1",
        "buffer_compress_percentage=50\nrefill_buffers=1",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file for each size of block, and one that has a wrong byte."""
    folder = tmp_path_factory.mktemp("fio")
    (folder / "tree").mkdir()
    for kib in sorted({kib for _, kib in PATTERNS}):
        write(folder / "tree" / f"{kib}k", kib)
    (folder / "tree" / "wrong").write_bytes((folder / "tree" / "4k").read_bytes())
    flip(folder / "tree" / "wrong", SIZE // 2 + 2000)
    build(folder / "tree", folder / "img")
    save_key(KEY, folder / "key")
    return folder


@pytest.fixture(scope="module", params=FRONTENDS)
def mount(request, place):
    """A mount, and whether programs may bypass the kernel's cache there."""
    options = ("--key", place / "key", "--frontend", request.param, "--allow-other", "--cache-size", "512K")
    with mounting(place / "img", place / request.param, *options) as directory:
        yield directory, request.param != "erofs"


def reading(path, pattern, kib, engine, jobs, is_direct):
    """A section for one cell of the matrix. libaio is asynchronous for direct reads only."""
    direct = int(engine == "libaio" and is_direct)
    depth = 8 if direct else 1
    return (
        f"[{engine} {pattern} {kib}k {jobs}]\nfilename={path}\nrw={pattern}\nbs={kib}k\nioengine={engine}\n"
        f"iodepth={depth}\ndirect={direct}\nnumjobs={jobs}\ngroup_reporting\nnew_group\nstonewall\n"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_every_block_is_what_fio_wrote(mount, tmp_path, engine, tally):
    directory, is_direct = mount
    cells = [(pattern, kib, jobs) for pattern, kib in PATTERNS for jobs in JOBS]
    sections = [
        reading(directory / f"{kib}k", pattern, kib, engine, jobs, is_direct) for pattern, kib, jobs in cells
    ]
    groups = fio(tmp_path, *sections)
    assert [group["jobname"] for group in groups] == [f"{engine} {p} {kib}k {jobs}" for p, kib, jobs in cells]
    for group, (_, kib, jobs) in zip(groups, cells, strict=True):
        assert group["error"] == 0
        assert group["read"]["io_bytes"] == SIZE * jobs
        tally("blocks checked by fio", SIZE * jobs // (kib * KIB))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_byte_in_the_file_itself_is_noticed(mount, tmp_path, engine):
    """That fio does check."""
    directory, is_direct = mount
    (group,) = fio(tmp_path, reading(directory / "wrong", "read", 4, engine, 1, is_direct), check=False)
    assert group["error"] != 0
