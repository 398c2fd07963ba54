"""Dataclasses from command-line flags and YAML files."""

import json
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the text at the end."""


def parse(command: str, configs: list[Any], arguments: list[str], epilog: str = "") -> tuple[Any, ...]:
    """The dataclasses from flags, over the YAML file that `--config` names, over their defaults.

    Args:
        command: the subcommand, for messages.
        configs: dataclasses; the docstring of the first says what the command does.
        arguments: of the command line, without the subcommand.
        epilog: what `--help` says at its end.
    """

    def mask_rate(text: str) -> float | str:
        return text if text == "uniform" else float(text)

    summary = configs[0].__doc__.split("\n")[0]
    parser = HfArgumentParser(
        configs,
        prog=f"bico {command}",
        description=summary,
        epilog=epilog,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if action.dest == "mask_rate":  # HfArgumentParser makes a float of `float | str`
            action.type = mask_rate
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these options by name; flags win over it.")
    only_config = ArgumentParser(f"bico {command}", add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", metavar="FILE")
    path = only_config.parse_known_args(arguments)[0].config
    known = {flag.lstrip("-").replace("-", "_") for action in parser._actions for flag in action.option_strings}
    from_file = [] if path is None else _as_flags(path, known)
    *parsed, _, unknown = parser.parse_args_into_dataclasses([*from_file, *arguments], return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(parsed)


def _as_flags(path: str, known: set[str]) -> list[str]:
    """The options in a YAML file as flags, so that they are checked as flags are."""
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options as `name: value`, got {type(options).__name__}")
    options = {str(name).replace("-", "_"): value for name, value in options.items()}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{path} has unknown options: {', '.join(unknown)}; see --help for those there are")
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(one) if isinstance(one, bool | dict) else str(one) for one in values]
        flags += [f"--{name}", *texts]
    return flags
