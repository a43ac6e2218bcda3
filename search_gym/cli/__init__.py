"""The command ``search-gym``: one module a subcommand, with ``HELP`` and ``add_arguments(parser)``.

``add_arguments`` sets the default ``run`` to a function of the parsed arguments.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from search_gym import __version__, plugins
from search_gym.errors import SearchGymError


def make_parser() -> argparse.ArgumentParser:
    """The command line with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="search-gym",
        description="Indexes, a retrieval server and question sets for language models that learn to search.",
    )
    parser.add_argument("--version", action="version", version=f"search-gym {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in plugins.names(sys.modules[__name__]):
        module = importlib.import_module(f"{__name__}.{name}")
        formatter = argparse.RawDescriptionHelpFormatter
        child = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=formatter)
        module.add_arguments(child)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that ``args`` (by default the process's) describe; an error of ours or of a file is one line."""
    parsed = make_parser().parse_args(args)
    try:
        parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SearchGymError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
