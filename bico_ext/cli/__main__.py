"""Runs the `bico` command as `python -m bico_ext.cli`."""

import sys

from bico_ext.cli.main import main

sys.exit(main())
