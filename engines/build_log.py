"""What the builder logs that says something about its result."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from fastwan.errors import VerificationFailed

_SCRATCH = re.compile(r"^Total Activation Memory: (\d+) bytes", re.MULTILINE)


@dataclass
class BuildLog:
    """Messages of one build that say something about its result.

    Attributes:
        facts: the layer block and the memory figures.
        errors: errors and warnings, newest last.
    """

    facts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def scratch_bytes(self, engine: str) -> int:
        """Device memory of an execution context in the profile that needs most.

        Raises:
            VerificationFailed: the builder did not say.
        """
        # One line a profile.
        sizes = [int(match[1]) for match in map(_SCRATCH.search, self.facts) if match]
        if sizes:
            return max(sizes)
        raise VerificationFailed(
            "the builder's log does not state the scratch memory",
            where=engine,
            fix="report this version of TensorRT; its engines cannot be checked",
        )


def capturing_logger(trt: Any, log: BuildLog) -> Any:
    """A logger that keeps what `BuildLog` holds and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # An exception here would cross C++ frames, so nothing may raise.
            if severity <= trt.ILogger.Severity.ERROR:
                log.errors.append(message)
            elif message.startswith(("Layers:", "Total Activation Memory:")):
                log.facts.append(message)

    return Logger()
