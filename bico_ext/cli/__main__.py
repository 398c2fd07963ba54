"""`python -m bico_ext.cli` is the `bico` command."""

import sys

from bico_ext.cli.main import main

sys.exit(main())
