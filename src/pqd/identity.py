"""What makes two runs, two stages or two repetitions the same, from what options decide.

Cache keys, the waves of a sweep and the averages of a report all ask here.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pqd import options
from pqd.cache import file_digest, key_of
from pqd.config import BASELINE, Config
from pqd.errors import UserError
from pqd.networks import WEIGHTS
from pqd.options import PLAIN, Decides, Option
from pqd.stages import STAGES, spelled

_IN_EVERY_NAME = {"backbone", "dataset", "order", "seed", "suffix"}
_IN_EVERY_NAME |= {f"{group}.name" for group in ("backbone", "dataset", "order")}
_NOT_IN_NAMES = r"[^\w.,+=-]+"  # of values
_LEFT_OUT = rf"""["'\[\]{{}}]|^{_NOT_IN_NAMES}"""
_BY_STAGE = ("order.", "budget", "target.")  # counted by the stages that they change


def content(key: str, path: Path) -> str:
    """Returns what stands for the content of a file, or of a folder with a network.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file_digest(path / WEIGHTS if path.is_dir() else path)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from None


def stage_keys(config: Config, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns the keys of the baseline and of each stage of the order, by name.

    Args:
        config: of the run.
        facts: what is found out before training, as `Trainer.facts`. None where that is still
            unknown: keys then tell apart what differs within a sweep.

    Raises:
        UserError: a file that the configuration names cannot be read.
    """
    kinds = [Decides.OUTCOME, Decides.REPEAT]
    if facts is None:
        kinds.append(Decides.PLACE)
    stages = tuple(f"{name}." for name in STAGES)
    shared = options.selected(config, kinds=kinds)
    shared = {k: v for k, v in shared.items() if not k.startswith((*stages, *_BY_STAGE))}
    if facts is not None:
        shared |= _files_among(config.backbone.kwargs)
    last = key_of(shared | dict(facts or {}))
    keys: dict[str, str] = {}
    for stage in (STAGES[BASELINE], *spelled(config.order.name)):
        depends = stage.identity(config, keys, None if facts is None else content)
        named = {"parent": last, "stage": stage.name, "version": stage.version}
        last = keys[stage.name] = key_of(named | depends)
    return keys


def _files_among(kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Returns what stands for the content of the files that a backbone's arguments name."""
    return {key: content(key, path) for key, path in _files("backbone.kwargs", kwargs)}


def _files(key: str, value: Any) -> Iterator[tuple[str, Path]]:
    """Finds the names of files in a setting, whatever it is made of."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _files(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _files(f"{key}.{number}", item)
    elif isinstance(value, str) and os.path.isfile(path := os.path.expanduser(value)):
        yield key, Path(path)


def wanted(config: Config) -> dict[str, str]:
    """Names the cache entries that a job wants, from its configuration alone.

    These are not the cache's keys, which need the images, but they are equal for two jobs of a
    sweep exactly where those are (two spellings of one setting apart).

    Returns:
        The names by the labels of `pqd.steps.Steps`: of the baseline, the stages, the exported
        baseline, the artifact and its figures.
    """
    trained = stage_keys(config, None)
    [*_, last] = trained.values()
    form = files_of(config) | {"targets": sorted(config.target.names)}
    artifact = key_of({"network": last, "order": config.order.name} | form)
    dense = key_of({"dense": trained[BASELINE]} | form)
    figures = key_of({"artifact": artifact} | figures_of(config))
    return trained | {"dense": dense, "artifact": artifact, "figures": figures}


def files_of(config: Config) -> dict[str, Any]:
    """Returns what the files of an artifact depend on besides the network."""
    return options.selected(config, kinds=[Decides.FILES])


def figures_of(config: Config) -> dict[str, Any]:
    """Returns what the figures of an artifact depend on besides the artifact."""
    return options.selected(config, kinds=[Decides.FIGURES])


def run_hash(config: Config) -> str:
    """Returns 16 hex digits that two runs share if they are the same run."""
    return key_of(options.selected(config, kinds=set(Decides) - {Decides.NOTHING}))


def run_name(config: Config) -> str:
    """Returns what a run is called in tables and W&B."""
    parts = [config.backbone.name, config.dataset.name, config.order.name]
    order = spelled(config.order.name)
    for stage in filter(order.__contains__, STAGES.values()):
        usual = {key: value for key, value, _ in options.leaves(stage.settings_class()())}
        for key, value, given in options.leaves(config.of(stage.name)):
            if given.tag and value and (given.tag_default or value != usual[key]):
                parts.append(f"{given.tag}{value:g}")
    return "_".join((*parts, f"seed{config.seed}")) + config.suffix


def swept_suffix(swept: Mapping[str, str]) -> str:
    """Returns the overrides that a sweep varies as they end a run's name, e.g. `_prune.lr=0.01`.

    Args:
        swept: values by key or config group; those that every name holds are left out.
    """
    return "".join(
        f"_{key}={re.sub(_NOT_IN_NAMES, '-', re.sub(_LEFT_OUT, '', value))}"
        for key, value in swept.items()
        if key not in _IN_EVERY_NAME and option_at(key).tag is None
    )


def option_at(key: str) -> Option:
    """Returns what is known of the setting with a dotted key.

    Of an unknown one (of another version, say) it is that it decides the outcome.
    """
    group, _, rest = key.partition(".")
    kind: Any = STAGES[group].settings_class() if group in STAGES else Config
    return _option_at(kind, rest if group in STAGES else key) or PLAIN


@cache
def _option_at(kind: type, key: str) -> Option | None:
    name, _, rest = key.partition(".")
    of = next((of for of in fields(kind) if of.name == name), None)
    if of is None:
        return None
    given = options.option_of(of)
    inner = get_type_hints(kind)[name]
    group = rest and given.decides is Decides.OUTCOME and is_dataclass(inner)
    return _option_at(inner, rest) if group else given


def owner(key: str) -> str | None:
    """Returns the stage whose setting this is, None if all stages share it."""
    group = key.partition(".")[0]
    return group if group in STAGES else None


def counts(key: str, order: Iterable[str]) -> bool:
    """Tells whether a run of these stages has a setting: one of all stages, or of one of them.

    Args:
        key: dotted.
        order: names of the stages after the baseline.
    """
    return owner(key) in (None, BASELINE, *order)


def of_baseline(key: str) -> bool:
    """Tells whether a setting decides what the baseline is, and so all that comes after it."""
    return counts(key, ()) and not key.startswith(("order.", "target."))
