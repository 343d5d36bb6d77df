"""The command line: `COMMANDS`, each in the module of its name below `fastwan.commands`.

A module is imported when its command is asked for, all of them for ``--help``. Every import that
takes time stands inside the function of the command that needs it.
"""

from __future__ import annotations

import importlib
import warnings
from collections import UserDict
from typing import Any

import click

from fastwan import __version__
from fastwan.commands.running import State
from fastwan.console import Color, Look, show_warning
from fastwan.failures import OneLineGroup
from fastwan.signals import end_cleanly_on_signals

COMMANDS = (
    "make-checkpoint",
    "build-engine",
    "swap-weights",
    "inspect",
    "compare",
    "plan",
    "generate",
    "serve",
    "export-triton",
    "bench",
    "verify",
    "gate",
    "goldens",
    "selftest",
    "build-plugin",
    "comfyui",
    "cache",
    "doctor",
)


class LazyCommands(UserDict[str, Any]):
    """Commands by name; None until one is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if self.data[name] is None:
            function = name.replace("-", "_")
            module = importlib.import_module(f"fastwan.commands.{function}")
            self.data[name] = getattr(module, function)
        command: click.Command = self.data[name]
        return command


@click.group(
    cls=OneLineGroup,
    commands=LazyCommands.fromkeys(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="fastwan-export")
@click.option("--debug", is_flag=True, help="Show tracebacks; may stand anywhere.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; may stand anywhere.")
@click.option("-v", "--verbose", is_flag=True, help="Progress part by part; likewise.")
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
    help="Of results; NO_COLOR does as never.",
)  # fmt: skip
def main(debug: bool, quiet: bool, verbose: bool, color: Color) -> None:
    """FastWan text-to-video models as NVFP4 TensorRT engines for NVIDIA Blackwell.

    Exit codes: 0 good, 2 bad input, 3 the environment lacks something, 4 verification failed,
    5 worse than the baseline, 1 unexpected, 130 interrupted, 143 and 129 ended by a signal.
    """
    State.debug, State.quiet, State.verbose = debug, quiet, verbose
    Look.color = color
    warnings.showwarning = show_warning
    end_cleanly_on_signals()


if __name__ == "__main__":
    main()
