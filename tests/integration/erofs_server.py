"""Serves an image through the kernel's EROFS in ways that the command line does not offer.

``python erofs_server.py IMAGE DIRECTORY [loops] [gate=FIFO] [vanish]`` opens IMAGE with the key of all tests,
prints ``mounted`` and serves until it is unmounted. With ``loops`` it takes loop devices. With a gate, every
read of a data blob waits until somebody has the FIFO open for writing, as a store waits that does not answer;
it prints ``waiting`` then. With ``vanish`` the mount point is removed first.
"""

import os
import sys
from pathlib import Path

from support.images import KEY

from rafsfs.frontends import kernel_erofs, logs
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.fs.image import open_sealed
from rafsfs.store.oci_layout import LayoutImage
from rafsfs.store.reference import parse_reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy


class GatedFile:
    """A stored file behind a gate."""

    def __init__(self, file, gate):
        self.name, self.size, self.close = file.name, file.size, file.close
        self._file = file
        self._gate = gate

    def read_range(self, offset, length):
        os.write(1, b"waiting\n")
        self._gate.open().close()
        return self._file.read_range(offset, length)


def main():
    name, directory, *words = sys.argv[1:]
    logs.use(logs.to_standard_error(), "INFO")
    gates = [Path(word.removeprefix("gate=")) for word in words if word.startswith("gate=")]

    def open_blob(stored, descriptor):
        file = LayoutImage.open(stored, descriptor)
        return GatedFile(file, gates[0]) if gates else file

    image = open_sealed(parse_reference(name), KeyRing(symmetric=(KEY,)), TrustPolicy(), open_blob=open_blob)
    options = MountOptions(source=str(Path(name).absolute()), allow_other=True)
    if "vanish" in words:
        Path(directory).rmdir()
    with image:
        kernel_erofs.serve(
            image,
            Path(directory),
            options,
            lambda: print("mounted", flush=True),
            use_loops="loops" in words,
        )


if __name__ == "__main__":
    main()
