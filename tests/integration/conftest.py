"""Which front end the mounts of a test go through; never mounts anything itself."""

import pytest
from support import mounts


@pytest.fixture(params=["devfuse", "pyfuse3"])
def frontend(request, monkeypatch):
    """Run the test once for each FUSE front end, or those that it is parametrized with."""
    let_in = ("--allow-other",) if request.param == "erofs" else ()
    monkeypatch.setattr(mounts, "MOUNT_OPTIONS", ("--frontend", request.param, *let_in))
    return request.param
