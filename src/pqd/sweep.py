"""Around Hydra: a sweep's folder and end, and one clear line for a user's mistake."""

import difflib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pqd.config import Config
from pqd.errors import choices
from pqd.record import FILE, SCHEMA, read_json, write_json

CONF = "conf"
REPORT_EVERY = 60.0  # seconds between two reports while a sweep runs; the last one is always made
# What the machine refuses, and the user can mend.
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}

_folder: Path | None = None
_job_failed = False


class RememberFolder(Callback):
    """Notes a sweep's folder, which Hydra tells nobody else in the launching process."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the jobs start."""
        global _folder
        _folder = Path(config.hydra.sweep.dir).absolute()


def launch(main: Callable[[], Any]) -> None:
    """Runs Hydra's main, ends a sweep with its report, and exits; 0 only if all went well."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors arrive here rather than printed by Hydra
    # `kill` is as Ctrl-C, or else joblib's workers would train on without us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_globs(sys.argv[1:], Path(sys.argv[0]).resolve().parent / CONF)
        main()
        code = 0
    except KeyboardInterrupt:
        _print_error("interrupted; finished stages are kept, the same command goes on from them")
        code = 130
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        _print_error(line)
        code = 1
    finally:
        failed = _finish(_folder) if _folder is not None and _folder.exists() else []
    sys.exit(1 if failed or _job_failed else code)


def one_line(error: BaseException) -> str | None:
    """Returns what to tell the user of an error, None if it is a bug of ours."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return str(choices(group, option, error.options))
    if isinstance(error, CompactHydraException):
        cause = error.__cause__
        text = f"{error}. {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
        return " ".join(text.split()) + _nearest_key(text)
    if isinstance(error, OmegaConfBaseException):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return None


@contextmanager
def job(cfg: DictConfig) -> Iterator[None]:
    """Around one job: a user's mistake is one line, and never without a `result.json`.

    Errors do not reach Hydra, which would print more, but for our own bugs.
    """
    global _job_failed
    try:
        yield
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        _print_error(line)
        _job_failed = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        if not (folder / FILE).exists():  # the run had not started
            record = {"schema": SCHEMA, "name": folder.name, "config": OmegaConf.to_container(cfg)}
            end: dict[str, Any] = {"status": "failed", "reason": line, "stages": [], "final": None}
            write_json(folder / FILE, record | end)
    _after_job()


def _after_job() -> None:
    """Rebuilds the report of the sweep the job is part of, unless that was done a moment ago."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir).absolute()
        report = sweep / "report.html"
        if not report.exists() or time.time() - report.stat().st_mtime > REPORT_EVERY:
            _report(sweep, figures=False)


def _finish(sweep: Path) -> list[str]:
    """Ends a sweep: report, table, W&B's summary, and the names of the jobs that failed."""
    from pqd.progress import comparison_table, make_console

    results = [read_json(path) for path in sorted(sweep.glob(f"*/{FILE}"))]
    failed = [result for result in results if result["status"] != "completed"]
    for result in failed:
        _print_error(f"{result['name']} {result['status']}: {result['reason']}")
    if results:
        _report(sweep)
    if len(failed) < len(results):
        _summarize(results, sweep)
    console = make_console()
    console.print(comparison_table(results))
    done = len(results) - len(failed)
    console.print(f"{done} of {len(results)} runs completed; folder: {sweep}", soft_wrap=True)
    return [result["name"] for result in failed]


def _report(sweep: Path, *, figures: bool = True) -> None:
    from pqd import report

    report.build([sweep], sweep, figures=figures)


def _summarize(results: list[dict[str, Any]], sweep: Path) -> None:
    """Logs the sweep's frontier to W&B, where its runs went."""
    from pqd import tracking
    from pqd.report.load import load
    from pqd.report.view import view

    completed = next(result for result in results if result["status"] == "completed")
    config = OmegaConf.to_object(OmegaConf.merge(Config, completed["config"]))
    assert isinstance(config, Config)
    if config.logger.name != "none":
        tracking.log_sweep(config, sweep, view(load([sweep])))


def check_globs(arguments: list[str], conf: Path) -> None:
    """Refuses a glob without a match, where Hydra would launch nothing and call it a success.

    Args:
        arguments: of the command line.
        conf: the folder of configuration groups.

    Raises:
        UserError: a glob over a config group that matches none of its options.
    """
    overrides = OverridesParser.create().parse_overrides(
        [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    )
    for override in overrides:
        glob = override.value()
        group = conf / override.key_or_group
        if isinstance(glob, Glob) and group.is_dir():
            options = [path.stem for path in group.glob("*.yaml")]
            if not glob.filter(options):
                raise choices(override.key_or_group, override.get_value_string(), options)


def _nearest_key(text: str) -> str:
    """Returns a hint for a misspelt configuration key that an error message names."""
    match = re.search(r"Could not override '([\w.]+)'", text)
    if match is None:
        return ""
    near = difflib.get_close_matches(match.group(1), list(_keys(Config)), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(schema):
        yield prefix + field.name
        if is_dataclass(field.type):
            yield from _keys(field.type, f"{prefix}{field.name}.")


def _print_error(line: str) -> None:
    print(f"pqd: {line}", file=sys.stderr)
