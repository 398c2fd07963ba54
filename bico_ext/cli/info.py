"""`bico info`: print the versions, the machine and the backends of the op as JSON."""

import argparse
import json

from bico_ext import environment
from bico_ext.ops import backends


def run(arguments: list[str]) -> None:
    description = "Print the versions, the machine and the backends of the op as JSON."
    argparse.ArgumentParser("bico info", description=description).parse_args(arguments)
    print(json.dumps({**environment.describe(), "backends": backends.describe()}, indent=1))
