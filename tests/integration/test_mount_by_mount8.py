"""mount(8), /etc/fstab and umount(8) with the type fuse.rafsfs.

mount(8) looks for helpers in /sbin alone. To leave the machine's own as it is, every test runs in a mount
namespace in which a folder with the helper is laid over it.
"""

import os
import shlex
import subprocess
import sys

import pytest
from support import mounts
from support.images import KEY, build

from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount8")
    (folder / "tree").mkdir()
    (folder / "tree" / "hello").write_bytes(b"hello, world\n")
    build(folder / "tree", folder / "img", tag="v1")
    save_key(KEY, folder / "key")
    (folder / "m").mkdir()
    (folder / "sbin").mkdir()
    script = folder / "bin" / "mount.fuse.rafsfs"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\n"
        f"import sys\nsys.path.insert(0, {str(mounts.ROOT)!r})\n"
        "from rafsfs.cli.mount_helper import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    (folder / "sbin" / script.name).symlink_to(script)
    return folder


def run(place, script):
    """Run a shell script where mount(8) has the helper; ``$I``, ``$K``, ``$M``: image, key, mount point."""
    names = {"I": f"{place}/img:v1", "K": place / "key", "M": place / "m"}
    head = "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in names.items())
    sbin = os.path.realpath("/sbin")
    overlay = f"mount -t overlay overlay -o lowerdir={place}/sbin:{sbin} {sbin} || exit 99"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", f"{head}\n{overlay}\n{script}"],
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT), "LC_ALL": "C"},
        check=False,
        timeout=mounts.END_S,
    )
    assert done.returncode != 99, done.stderr
    done.stderr = mounts.without_log_warning(done.stderr)
    return done


def test_mount_and_umount(place):
    done = run(
        place,
        """
        mount -t fuse.rafsfs $I $M -o key=$K && cat $M/hello && findmnt -no FSTYPE,SOURCE,OPTIONS $M
        umount $M && findmnt $M || echo gone
        """,
    )
    assert done.stderr == ""
    hello, shown, gone = done.stdout.splitlines()
    assert hello == "hello, world"
    kind, source, options = shown.split()
    assert (kind, source) == ("fuse.rafsfs", f"{place}/img:v1")
    assert "ro" in options.split(",")
    assert gone == "gone"


@pytest.mark.parametrize("frontend", ["devfuse", "pyfuse3"])
def test_options(place, frontend):
    done = run(
        place,
        """
        mount -t fuse.rafsfs $I $M -o ro,key=/nowhere,key=$K; echo $?
        O=ro,key=$K,frontend=FRONTEND
        mount -t fuse.rafsfs $I $M -o $O,uid=77,gid=0,allow_other,noexec,cache_size=8M,x-a=b; echo $?
        stat -c %u:%g $M/hello; findmnt -no OPTIONS $M; umount $M
        mount -t fuse.rafsfs $I $M -o $O,nosuid,dev; findmnt -no OPTIONS $M; umount $M
        """.replace("FRONTEND", frontend),
    )
    no_key, code, owner, options, others = done.stdout.splitlines()
    assert (no_key, code, owner) == ("14", "0", "77:0")
    assert "no such key file" in done.stderr
    assert {"ro", "noexec", "allow_other"} <= set(options.split(","))
    # mount(8) means suid and dev unless it says otherwise, where libfuse means nosuid and nodev
    assert {"nosuid", "nodev"}.isdisjoint(options.split(","))
    assert "nosuid" in others.split(",")
    assert "nodev" not in others.split(",")


@pytest.mark.parametrize(
    "options", ["defaults,ro,nofail,_netdev,x-systemd.automount", "key=KEY,noauto,user,comment=x"]
)
def test_fstab(place, tmp_path, options):
    fstab = tmp_path / "fstab"
    options = options.replace("KEY", str(place / "key"))
    if "key=" not in options:
        options += f",key={place}/key"
    fstab.write_text(f"{place}/img:v1 {place}/m fuse.rafsfs {options} 0 0\n")
    done = run(place, f"mount -T {fstab} $M && cat $M/hello && umount $M")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello, world\n", "")


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        ("mount -t fuse.rafsfs $I $M", 4, "no given key opens this image"),
        ("mount -t fuse.rafsfs $I $M -o key=$K,kye=x", 9, "unknown mount option: kye=x"),
        ("mount -t fuse.rafsfs $I-none $M -o key=$K", 11, "no tag"),
        ("mount -t fuse.rafsfs $I /proc -o key=$K", 19, "something is mounted on the mount point already"),
        ("mount -t fuse.rafsfs $I $M -o key=$K,remount", 9, "remount"),
    ],
)
def test_refused_in_one_line(place, command, code, complaint):
    done = run(place, f"{command}; echo $?; findmnt $M")
    if "remount" not in command:  # mount(8) itself may refuse to mount anew what is not mounted
        assert done.stdout == f"{code}\n"
        assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr or "not mounted" in done.stderr


def test_a_fake_mount_checks_and_mounts_nothing(place):
    done = run(place, "mount -f -t fuse.rafsfs $I $M -o key=$K; echo $?; findmnt $M")
    assert (done.stdout, done.stderr) == ("0\n", "")
    done = run(place, "mount -f -t fuse.rafsfs $I $M; echo $?")
    assert done.stdout == "4\n"
    assert "no given key" in done.stderr
