"""What other work takes of the cores that this process computes on."""

import os
import time
from collections.abc import Collection
from pathlib import Path


class Others:
    """What of some cores others use while this process computes on them."""

    def __init__(self, cpus: Collection[int]) -> None:
        """Starts counting on the logical CPUs with these numbers."""
        self.cpus = cpus
        self.start = self._now()

    def share(self) -> float | None:
        """Returns the share, in [0, 1], of the cores' time since the start that others took.

        Others are all processes but this one, and the hypervisor (steal). None where the system
        does not tell (it is no Linux).
        """
        if not self.start or not (now := self._now()):
            return None
        busy, own, wall = (after - before for after, before in zip(now, self.start, strict=True))
        return min(1.0, max(0.0, (busy - own) / (wall * len(self.cpus))))

    def _now(self) -> tuple[float, float, float] | None:
        """Returns seconds: the cores busy, this process computing, wall clock."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return None
        ticks = {name: numbers for name, *numbers in (line.split() for line in lines)}
        busy = 0
        for cpu in self.cpus:
            numbers = ticks.get(f"cpu{cpu}", [])
            if len(numbers) < 8:  # of a container that numbers its CPUs anew
                return None
            user, nice, system, _idle, _wait, irq, soft_irq, steal = numbers[:8]
            busy += sum(map(int, (user, nice, system, irq, soft_irq, steal)))
        return busy / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()
