"""How many scans can be read at once: one a core, and no more than memory allows, by what they have been seen to take."""

from __future__ import annotations

from collections.abc import Sequence

from cov3d.config import Machine
from cov3d.console import say
from cov3d.memory import has_room, peak_memory

FIRST_GUESS = 2**30  # bytes, before the first scan is read


class Room:
    """Room for processes, which are numbers here. A number of them that the user said is taken as it is."""

    def __init__(self, machine: Machine):
        self.processes = machine.processes
        self.limited = machine.workers is None
        self.peak = 0  # bytes of the process that had most; 0 while nothing is known
        self.said = False

    def learn(self, process: int) -> None:
        """Look at what a process has taken, when its scan is read."""
        self.peak = max(self.peak, peak_memory(process) or 0)

    def beside(self, busy: Sequence[int], idle: int | None) -> bool:
        """Whether another scan can be read beside these, by an idle process or, without one, by a new one."""
        if len(busy) >= self.processes:
            return False
        if not busy or not self.limited or has_room(self.peak or FIRST_GUESS, idle, busy):
            return True
        if self.peak:
            self._say(len(busy))
        return False

    def _say(self, fit: int) -> None:
        if not self.said:
            say(
                f"note: memory allows {fit} of {self.processes} processes at a time, since a scan takes up to "
                f"{self.peak / 2**30:.1f} GB; --workers says otherwise"
            )
        self.said = True
