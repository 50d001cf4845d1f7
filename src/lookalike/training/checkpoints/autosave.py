"""When the middle of an epoch is worth a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable


class Autosave:
    """Tells when the next checkpoint in the middle of an epoch is due.

    Args:
        minutes: from one checkpoint, of whatever kind, to the next; None: never.
        clock: seconds that only ever rise.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._minutes, self._clock = minutes, clock
        self.restart()

    def restart(self) -> None:
        """Counts anew from now: something was saved, or could not be."""
        self._since_s = self._clock()

    def is_due(self) -> bool:
        """Whether the time has come."""
        return self._minutes is not None and self._clock() - self._since_s >= 60 * self._minutes
