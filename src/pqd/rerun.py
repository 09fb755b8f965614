"""`pqd rerun`: repeats a run from its `result.json`, and says what is not as it was then."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pqd import data, identity, keys, options, pipeline, result, schema
from pqd.config import Config
from pqd.errors import UserError, one_line
from pqd.measure import provenance
from pqd.options import Decides
from pqd.progress import place, show
from pqd.result import FILE, Result

FOLDER = Path("outputs/rerun")
ABSENT = "not recorded"
CLOSE = 0.005  # points of accuracy, as they are shown


def rerun(
    path: Path, folder: Path | None = None, given: Sequence[str] = (), *, only_compare: bool = False
) -> bool:
    """Trains and measures a run again, without the cache, and compares the figures.

    Args:
        path: a `result.json`, or the folder with it.
        folder: of the new run; None is one below `outputs/rerun`, in which a rerun that was killed
            goes on.
        given: settings to change, `key=value`, which leave it the same experiment.
        only_compare: only says what differs.

    Returns:
        Whether the accuracy is what it was; True where nothing was to be run.

    Raises:
        UserError: there is no result, its settings are not those of this version, a setting would
            make it another run, or it has been repeated already.
    """
    before = _read(path)
    config = _config(before, given)
    for line in differences(before, config):
        show(f"differs: {line}")
    if only_compare:
        return True
    folder = folder or FOLDER / f"{before.name}-{identity.run_hash(config)[:8]}"
    if _completed(folder):
        raise UserError(
            f"{place(folder)} holds a completed run; remove it, or give another with --output"
        )
    found = pipeline.run(config, folder)
    return _compare(before, found)


def differences(before: Result, config: Config) -> Iterator[str]:
    """Yields what is not as it was when a run was made: code, versions, machine, data, settings.

    Args:
        before: the run.
        config: what it is to be repeated with.
    """
    then, now = vars(before.provenance), provenance()
    for key in ("commit", "python", "os", "cpu", "cores"):
        yield from _differs(key, then[key], now[key])
    for name in sorted({*then["versions"], *now["versions"]}):
        yield from _differs(name, then["versions"].get(name), now["versions"].get(name))
    recorded = before.final.dataset if before.final else None
    yield from _differs("images", recorded, data.load_dataset(config.dataset).fingerprint)
    recorded_settings, unknown = dict(_flat(before.config)), []
    for key, value, given in options.leaves(config):
        decides = given.decides not in (Decides.NOTHING, Decides.PLACE)
        if not decides or not identity.counts(key, before.order):
            continue
        if key in recorded_settings:
            yield from _differs(key, recorded_settings[key], value)
        else:
            unknown.append(key)
    if unknown:
        yield f"settings that were not recorded have their defaults: {', '.join(unknown)}"


def _differs(what: str, then: Any, now: Any) -> Iterator[str]:
    if then != now:
        then, now = (ABSENT if value is None else value for value in (then, now))
        yield f"{what} was {then}, now {now}"


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a record by dotted key; also what is a group in it, as a whole."""
    for key, value in config.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _read(path: Path) -> Result:
    folder = path.parent if path.name == FILE else path
    try:
        return result.read(folder)
    except FileNotFoundError:
        raise UserError(f"there is no {FILE} in {folder}; give the folder of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(one_line(error)) from None


def _config(before: Result, given: Sequence[str]) -> Config:
    """The run's settings, with those that are given."""
    for text in given:
        key, equals, _ = text.partition("=")
        if not equals:
            raise UserError(f"{text!r}: key=value is expected, e.g. dataset.root=/images")
        known = list(keys.names(schema.schema()))
        if key not in known:
            raise keys.refused(key, known)
        if inner := [name for name in known if name.startswith(f"{key}.")]:
            raise UserError(f"{text}: {key} is a group; give its settings, e.g. {inner[0]}=VALUE")
        if identity.option_at(key).decides is Decides.OUTCOME:
            raise UserError(f"{text} would make it another run; give that to train.py")
    recorded = {k: v for k, v in before.config.items() if k not in ("stop_below", "dry_run")}
    try:
        base = schema.defaults()
        OmegaConf.set_struct(base, False)
        cfg = OmegaConf.merge(base, recorded)
    except OmegaConfBaseException as error:
        line = keys.explained(" ".join(str(error).split()), schema.schema())
        raise UserError(f"{before.name} has other settings than this version: {line}") from None
    try:
        cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(given)))
        # The cache would hand over what is to be repeated.
        cfg.cache.enabled = False
        assert isinstance(cfg, DictConfig)
        return schema.parse(cfg)
    except OmegaConfBaseException as error:
        line = keys.explained(" ".join(str(error).split()), schema.schema())
        raise UserError(f"{' '.join(given) or before.name}: {line}") from None
    except YAMLError as error:
        raise UserError(f"{' '.join(given)}: {one_line(error)}") from None


def _completed(folder: Path) -> bool:
    try:
        return result.read(folder).status == "completed"
    except (OSError, ValueError):
        return False  # `pipeline.run` looks closer


def _compare(before: Result, now: Result) -> bool:
    """Shows the figures of both; returns whether the accuracy is the same."""
    if before.final is None or now.final is None:
        show(f"it was {before.status}, and is {now.status} now")
        return before.status == now.status
    change = now.final.accuracy - before.final.accuracy
    same = abs(change) < CLOSE
    said = "the same" if same else f"{change:+.2f} points"
    show(
        f"accuracy was {before.final.accuracy:.2f} %, now {now.final.accuracy:.2f} %: {said}; "
        f"package was {before.final.sizes.get('package', 0):,} bytes, "
        f"now {now.final.sizes.get('package', 0):,}"
    )
    return same
