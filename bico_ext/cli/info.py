"""`bico info`: print the versions and the machine as JSON."""

import argparse
import json

from bico_ext import environment


def run(arguments: list[str]) -> None:
    argparse.ArgumentParser("bico info", description="Print the versions and the machine as JSON.").parse_args(
        arguments
    )
    print(json.dumps(environment.describe(), indent=1))
