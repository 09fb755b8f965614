"""Whether a measurement had its cores to itself."""

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pqd.locks import held

log = logging.getLogger(__name__)


def one_at_a_time() -> AbstractContextManager[None]:
    """Waits until no other job of this user measures on this machine, then keeps others waiting."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return held(
        Path(tempfile.gettempdir(), f"pqd-latency-{user}.lock"),
        lambda: log.info("another job measures its latency on this machine; waiting for its end"),
    )


class Others:
    """What of some cores others use while this process measures on them.

    Work beside a measurement that lasts as long as it does is not seen in the spread of its times.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
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
            user, nice, system, _idle, _wait, irq, soft_irq, steal = ticks[f"cpu{cpu}"][:8]
            busy += sum(map(int, (user, nice, system, irq, soft_irq, steal)))
        return busy / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()
