"""Puts the jobs of a sweep in an order in which none waits for another's stage.

Jobs with a common prefix meet at the cache's lock: one trains, the others wait, and on a cluster
each of them would hold its GPU meanwhile. So they are launched in waves: within a wave no two jobs
have an unfinished stage in common, and what a wave finishes the next one finds in the cache.
"""

from collections.abc import Sequence
from dataclasses import asdict

from pqd.cache import key_of
from pqd.config import Config

# What of `train` does not reach every stage: the pipeline picks a stage's own number, or none.
_PER_STAGE = ("epochs", "lr")
_NOT_TRAINING = "eval_batch_size"


def entries(config: Config) -> list[str]:
    """Names the cache entries that a job wants, from its configuration.

    These are not the cache's keys, which need the data set, but they are equal for two jobs of a
    sweep exactly where those are (two spellings of one setting apart).

    Returns:
        One name for each of the baseline, the stages, the exported baseline and the artifact;
        none with the cache off, where jobs share nothing.
    """
    if not config.cache.enabled:
        return []
    given = asdict(config)
    train = given["train"]
    own = {name: train.pop(name) for name in _PER_STAGE}
    del train[_NOT_TRAINING]
    last = key_of({key: given[key] for key in ("cache", "train", "seed", "backbone", "dataset")})
    trained = []
    for stage in ("baseline", *config.order.stages):
        numbers = {name: own[name][stage] for name in _PER_STAGE}
        last = key_of({"parent": last, "stage": stage, "settings": given[stage], **numbers})
        trained.append(last)
    dense = key_of({"dense": trained[0]})
    figures = {"order": config.order.name, "runtime": given["runtime"]}
    return [*trained, dense, key_of({"parent": last, **figures})]


def waves(wanted: Sequence[Sequence[str]]) -> list[list[int]]:
    """Splits jobs into waves, each job into the first that it fits.

    Args:
        wanted: what each job wants, as `entries` names it.

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
