"""Parsing of command-line flags and YAML files into dataclasses."""

import json
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from bico_ext.files import expand_user, read_yaml

# Options of all commands that are paths, or may be.
PATHS = frozenset(
    (
        *("output_dir", "model", "data", "input", "output", "entities_file"),
        *("resume_from_checkpoint", "deepspeed", "fsdp_config", "accelerator_config"),
    )
)


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """A help formatter that shows defaults, but no None, and keeps the line breaks of the epilog."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def path_or_name(text: str) -> str:
    """Return the value of an option that is a path, or may be; argparse names the option in its error."""
    try:
        return expand_user(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def parse(command: str, configs: list[Any], arguments: list[str], epilog: str = "") -> tuple[Any, ...]:
    """Parse a command line into dataclasses; flags override the YAML file of `--config`, which overrides defaults.

    Args:
        command: the subcommand, for messages.
        configs: the dataclasses. The first line of the first docstring describes the command in `--help`.
        arguments: the command line without the subcommand.
        epilog: the text at the end of `--help`.

    Returns:
        One object of each dataclass.

    Raises:
        OSError: the YAML file cannot be read.
        SystemExit: the command line asks for help or is wrong.
        ValueError: the YAML file is broken or has unknown options, or a dataclass refuses a value.
    """

    def mask_rate(text: str) -> float | str:
        return text if text == "uniform" else float(text)

    def switch(text: str) -> bool:
        return string_to_bool({"on": "yes", "off": "no"}.get(text.lower(), text))

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
        if action.dest == "mask_rate":  # HfArgumentParser parses `float | str` as a float
            action.type = mask_rate
        elif action.type is string_to_bool:
            action.type = switch
        elif action.dest in PATHS:
            action.type = path_or_name
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with any of these options by name; flags override it."
    )
    only_config = ArgumentParser(f"bico {command}", add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", metavar="FILE")
    path = only_config.parse_known_args(arguments)[0].config
    second_names = {
        alias.lstrip("-"): option.name
        for config in configs
        for option in fields(config)
        for alias in option.metadata.get("aliases", ())
    }
    known = {action.dest for action in parser._actions}
    from_file = [] if path is None else _as_flags(path, known, second_names)
    *parsed, _, unknown = parser.parse_args_into_dataclasses([*from_file, *arguments], return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(parsed)


def _as_flags(path: str, known: set[str], second_names: Mapping[str, str]) -> list[str]:
    """Return the options of a YAML file as flags, so that they are checked like flags."""
    options = read_yaml(path)
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options as `name: value`, got {type(options).__name__}")
    options = {str(name).replace("-", "_"): value for name, value in options.items()}
    for second, first in second_names.items():
        if second in options:
            if first in options:
                raise ValueError(f"{path} has both {first} and {second}, two names of one option; leave one out")
            options[first] = options.pop(second)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{path} has unknown options: {', '.join(unknown)}; --help lists the known ones")
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(item) if isinstance(item, bool | dict) else str(item) for item in values]
        flags += [f"--{name}", *texts]
    return flags
