"""Work that stops in time, in a state to go on from."""

import math
import time
from dataclasses import dataclass, field


class OutOfTime(Exception):
    """The time given is used up. No error: its message says how far the work is and how to go on."""


@dataclass(frozen=True)
class Deadline:
    """Some minutes from now."""

    minutes: float = math.inf
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() - self.started > 60 * self.minutes


NEVER = Deadline()
