"""Puts the jobs of a sweep in an order in which none waits for another's stage.

Jobs with a common prefix meet at the cache's lock: one trains, the others wait, and on a cluster
each of them would hold its GPU meanwhile. So they are launched in waves: within a wave no two jobs
have an unfinished stage in common, and what a wave finishes the next one finds in the cache.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from pqd import identity
from pqd.cache import Cache
from pqd.config import Config


def wanted(job: Config) -> list[str]:
    """Names the cache entries that a job wants; none with the cache off: jobs share nothing."""
    if not job.cache.enabled:
        return []
    return [f"{job.cache.dir}/{name}" for name in identity.wanted(job).values()]


def made(jobs: Sequence[Config]) -> set[str]:
    """Names what the jobs' caches hold, as `wanted` does.

    Some of it may be of other images or another device, and so not what a job wants. Then jobs of
    one wave meet at the lock.
    """
    folders = {job.cache.dir for job in jobs if job.cache.enabled}
    return {f"{folder}/{name}" for folder in folders for name in Cache(Path(folder)).names()}


def waves(wanted: Sequence[Collection[str]], made: Collection[str] = ()) -> list[list[int]]:
    """Splits jobs into waves, each job into the first that it fits.

    Args:
        wanted: what each job wants.
        made: what is there already.

    Returns:
        The jobs of each wave, as indices into `wanted`; in a wave no two jobs want the same
        thing that is not there and that no earlier wave has made.
    """
    there = set(made)
    waiting = list(range(len(wanted)))
    result = []
    while waiting:
        wave: list[int] = []
        making: set[str] = set()
        for job in waiting:
            missing = set(wanted[job]) - there
            if making.isdisjoint(missing):
                wave.append(job)
                making |= missing
        result.append(wave)
        there |= making
        waiting = [job for job in waiting if job not in wave]
    return result
