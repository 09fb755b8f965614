"""Between Hydra and the user: one clear line for a user's mistake, and exit codes."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pqd import interrupts, keys, result, schema
from pqd.errors import UserError, choices, one_line
from pqd.result import Result
from pqd.sweep import finish
from pqd.sweep.finish import print_error
from pqd.terminal import drop_output, tolerant_output

# What the machine refuses, and the user can mend.
_REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}

_job_failed = False


def launch(main: Callable[[], Any]) -> None:
    """Runs Hydra's main, ends a sweep with its report, and exits; 0 only if all went well."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors arrive here rather than printed by Hydra
    interrupts.listen()
    tolerant_output()
    code = 1
    try:
        _check_flags(sys.argv[1:])
        main()
        code = 0
    except KeyboardInterrupt:
        print_error("interrupted; finished stages are kept, the same command goes on from them")
        code = 130
    except BrokenPipeError:
        drop_output()
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and finish.place():
            error.filename = str(finish.place())  # Python names no file on a full disk
        line = mistake(error)
        if line is None and _is_foreign(error):
            line = one_line(error, named=not isinstance(error, OSError | ValueError))
        if line is None:
            raise
        print_error(line)
    finally:
        complete = finish.finish(interrupted=code == 130)
    sys.exit(code or int(_job_failed or not complete))


def mistake(error: BaseException) -> str | None:
    """Returns what to tell the user of an error, None if it is a bug of ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return str(choices(group, option, error.options))
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        cause = error.__cause__
        text = f"{error}. {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
        return keys.explained(" ".join(text.split()), schema.schema())
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return one_line(error)
    return None


@contextmanager
def job(cfg: DictConfig) -> Iterator[None]:
    """Around one job: a user's mistake is one line, and never without a `result.json`.

    Errors do not reach Hydra, which would print more, but for our own bugs. Relative paths are
    meant from where the user started the command, also with `hydra.job.chdir=true`.
    """
    global _job_failed
    hydra = HydraConfig.get()
    tolerant_output()  # in a process of a launcher's, too
    with suppress(OSError):  # on another machine
        os.chdir(hydra.runtime.cwd)
    try:
        yield
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        print_error(line)
        _job_failed = True
        _record(Path(hydra.runtime.output_dir), cfg, line)
    if hydra.mode == RunMode.MULTIRUN:
        with finish.harmless("the sweep's report"):
            finish.report_meanwhile(Path(hydra.sweep.dir).absolute())


def _record(folder: Path, cfg: DictConfig, line: str) -> None:
    """Writes down why a job was refused before it started; later on the run does that itself."""
    if (folder / result.FILE).exists():  # an earlier run's, or another one's that is under way
        return
    config = OmegaConf.to_container(cfg)
    assert isinstance(config, dict)
    given = {str(key): value for key, value in config.items()}
    with suppress(OSError):
        result.write(folder, Result(folder.name, "failed", given, reason=line))


def _check_flags(arguments: list[str]) -> None:
    """Refuses the flag of Hydra's that reads a pickle, also where it is shortened.

    Raises:
        UserError: it is there.
    """
    flag = "--experimental-rerun"
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > len("--") and flag.startswith(name):
            raise UserError(
                f"{flag} reads a pickle, which can run any code; `pqd rerun FOLDER` repeats a run"
            )


def _is_foreign(error: BaseException) -> bool:
    """Whether none of our code took part: Hydra refused the command line, a file or a folder."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]  # without `launch`
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    return modules.isdisjoint({"pqd", "hydra_plugins"})
