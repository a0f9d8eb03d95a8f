"""Lets ``python -m rafsfs`` be the ``rafsfs`` command; holds nothing else."""

import sys

from rafsfs.cli.main import main

sys.exit(main())
