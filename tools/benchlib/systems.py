"""The file systems under comparison: how each is made from a tree, mounted, unmounted; measures nothing."""

import os
import shutil
import subprocess
from pathlib import Path

from benchlib import machine
from benchlib.trees import kept

ZSTD_LEVEL = 3
BLOCK_KIB = 256
MOUNT_PREFIX = "mount-"


class System:
    """One way to serve ``tree``: its files lie in ``folder``, it is mounted on ``directory``."""

    needs = ()
    is_server = False

    def __init__(self, name, tree, work, image=None):
        """Systems with the same ``image`` share it; it has the system's name otherwise."""
        self.name = name
        self.tree = tree
        self.folder = Path(work, image or name)
        self.directory = os.path.join(work, f"{MOUNT_PREFIX}{name}")

    def missing(self):
        """Name a program that is not installed, or None."""
        return next((program for program in self.needs if not shutil.which(program)), None)

    def prepare(self):
        """Make the image, unless it is there from an earlier run over the same tree."""
        os.makedirs(self.directory, exist_ok=True)
        kept(self.folder, [self.tree.fingerprint, self.recipe()], self.make)

    def recipe(self):
        """What else the image depends on."""
        return [ZSTD_LEVEL, BLOCK_KIB]

    def make(self, folder):
        """Make the image in ``folder``, which is not there yet."""
        raise NotImplementedError

    def mount(self):
        """Mount; return when the mount answers."""
        raise NotImplementedError

    def unmount(self):
        """Unmount, and wait until it is gone."""
        machine.unmount(self.directory)

    def stored_bytes(self):
        """Bytes of all files that the image is made of, without the keys."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class Source(System):
    """The tree as it lies on the machine's disk: no server, nothing compressed."""

    def prepare(self):
        self.directory = self.tree.path

    def mount(self):
        pass

    def unmount(self):
        pass

    def stored_bytes(self):
        return self.tree.total


OVER_EROFS = "rafsfs-erofs"


class Rafsfs(System):
    """This project. ``program`` is the command line to start it with."""

    is_server = True

    def __init__(self, name, tree, work, program, mount_options=()):
        super().__init__(name, tree, work)
        self.program = tuple(program)
        self.mount_options = tuple(mount_options)
        self.key = f"{self.folder}.key"
        self._is_built = False

    def twin(self, name, tree):
        """Make the same for another tree."""
        return Rafsfs(name, tree, self.folder.parent, self.program, self.mount_options)

    def shares(self, other):
        """Take another one's image instead of building one."""
        self.folder, self.key, self._is_built = other.folder, other.key, True

    def prepare(self):
        # Never kept from run to run: the code may have changed, and it takes seconds.
        os.makedirs(self.directory, exist_ok=True)
        if not self._is_built:
            self.build()

    def build(self):
        """Build the image anew."""
        if not os.path.exists(self.key):
            machine.run(*self.program, "keys", "new", self.key)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        level = f"zstd:{ZSTD_LEVEL}"
        machine.run(
            *self.program, "build", self.tree.path, self.folder, "--key", self.key, "--quiet",
            "--compress", level, "--chunk-size", f"{BLOCK_KIB}K",
        )  # fmt: skip

    def mount(self):
        machine.run(
            *self.program, "mount", self.folder, self.directory, "--key", self.key, *self.mount_options
        )

    def unmount(self):
        machine.run(*self.program, "umount", self.directory)


class Squashfs(System):
    """squashfs in the kernel, zstd at our level."""

    needs = ("mksquashfs",)

    def __init__(self, name, tree, work, block_kib=BLOCK_KIB):
        super().__init__(name, tree, work, f"squashfs-{block_kib}K")
        self.block_kib = block_kib
        self.image = self.folder / "image"

    def recipe(self):
        return [ZSTD_LEVEL, self.block_kib]

    def make(self, folder):
        os.makedirs(folder)
        self.build()

    def build(self):
        """Build the image anew."""
        machine.run(
            "mksquashfs", self.tree.path, self.image, "-noappend", "-no-progress", "-quiet",
            "-comp", "zstd", "-Xcompression-level", ZSTD_LEVEL, "-b", f"{self.block_kib}K",
        )  # fmt: skip

    def mount(self):
        machine.run("mount", "-t", "squashfs", "-o", "loop,ro", self.image, self.directory)


class SquashfuseLl(Squashfs):
    """The same image, served by squashfuse_ll."""

    needs = ("mksquashfs", "squashfuse_ll")
    is_server = True

    def mount(self):
        machine.run("squashfuse_ll", self.image, self.directory)


class Gocryptfs(System):
    """gocryptfs with AES-256-GCM: authenticated as we are, but file by file and without compression."""

    needs = ("gocryptfs",)
    is_server = True

    def __init__(self, name, tree, work):
        super().__init__(name, tree, work)
        self.secret = f"{self.folder}.password"

    def make(self, folder):
        os.makedirs(folder)
        Path(self.secret).write_text("benchmark\n")
        # The cost of guessing the password is not what is measured.
        machine.run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", self.secret, folder)
        self._mount()
        try:
            machine.run("cp", "--archive", f"{self.tree.path}/.", self.directory)
        finally:
            self.unmount()

    def _mount(self, *options):
        machine.run("gocryptfs", "-q", *options, "-passfile", self.secret, self.folder, self.directory)

    def mount(self):
        self._mount("-ro")


class Erofs(System):
    """EROFS in the kernel with its usual compressor."""

    needs = ("mkfs.erofs",)

    def recipe(self):
        return ["lz4hc"]

    def make(self, folder):
        os.makedirs(folder)
        machine.run("mkfs.erofs", "-zlz4hc", self.folder / "image", self.tree.path)

    def mount(self):
        machine.run("mount", "-t", "erofs", "-o", "loop,ro", self.folder / "image", self.directory)


PEERS = {
    "squashfuse_ll": SquashfuseLl,
    "gocryptfs": Gocryptfs,
    "squashfs": Squashfs,
    "squashfs-128K": lambda name, tree, work: Squashfs(name, tree, work, 128),
    "erofs": Erofs,
}
"""Name -> how to make it; the names are those of the tables."""

PEERS_DEFAULT = ("squashfuse_ll", "gocryptfs", "squashfs", "erofs")


def source_name(tree):
    """The file system type that the tree lies on, such as ext4."""
    done = subprocess.run(
        ["stat", "--file-system", "--format", "%T", tree.path], check=True, capture_output=True, text=True
    )
    return {"ext2/ext3": "ext4"}.get(done.stdout.strip(), done.stdout.strip())
