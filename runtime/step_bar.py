"""The progress bar of a pipeline call: tqdm's, as diffusers shows one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastwan.errors import BadInput

if TYPE_CHECKING:
    from tqdm import tqdm


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what tqdm does not take.

    Raises:
        BadInput: naming the option.
    """
    from tqdm import tqdm

    known = inspect.signature(tqdm.__init__).parameters.keys() - {"self", "iterable", "kwargs"}
    if unknown := sorted(config.keys() - known):
        raise BadInput(
            f"a progress bar has no option {', '.join(unknown)}",
            where="set_progress_bar_config",
            fix="these are tqdm's: disable, desc, leave, ncols, ...",
        )


class StepBar:
    """A bar for each stage that is counted, on stderr. Silent where that is not a terminal.

    Args:
        config: arguments of tqdm; ``disable=False`` shows it everywhere, True nowhere.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._bar: tqdm[Any] | None = None

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        self.stop()
        if total:
            from tqdm import tqdm

            hidden = True if os.environ.get("FASTWAN_QUIET") else None
            options = {"desc": stage, "total": total, "unit": f" {unit}", "disable": hidden}
            self._bar = tqdm(**{**options, **self._config})

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(amount)

    def finish(self, note: str = "") -> None:
        self.stop()

    def stop(self) -> None:
        """End the bar, at its end or where the call failed."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
