"""Puts the jobs of a sweep in an order in which none waits for another's stage.

Jobs with a common prefix meet at the cache's lock: one trains, the others wait, and on a cluster
each of them would hold its GPU meanwhile. So they are launched in waves: within a wave no two jobs
have an unfinished stage in common, and what a wave finishes the next one finds in the cache.
"""

from collections.abc import Sequence


def waves(wanted: Sequence[Sequence[str]]) -> list[list[int]]:
    """Splits jobs into waves, each job into the first that it fits.

    Args:
        wanted: what each job wants, as `pqd.identity.wanted` names it.

    Returns:
        The jobs of each wave, as indices into `wanted`; in a wave no two jobs want the same
        thing that no earlier wave has made.
    """
    made: set[str] = set()
    waiting = list(range(len(wanted)))
    result = []
    while waiting:
        wave: list[int] = []
        making: set[str] = set()
        for job in waiting:
            missing = set(wanted[job]) - made
            if making.isdisjoint(missing):
                wave.append(job)
                making |= missing
        result.append(wave)
        made |= making
        waiting = [job for job in waiting if job not in wave]
    return result
