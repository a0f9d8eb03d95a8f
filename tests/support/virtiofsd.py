"""Starts ``rafsfs-virtiofsd`` as VMMs do; serves nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys

from support.mounts import END_S, ROOT

PROGRAM = "import sys; from rafsfs.cli.virtiofsd import main; sys.exit(main())"


def start_virtiofsd(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start it with this command line."""
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # options are Popen's own
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )


def virtiofsd(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which has to come by itself."""
    process = start_virtiofsd(*arguments, stdin=subprocess.DEVNULL)
    output, errors = process.communicate(timeout=END_S)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)
