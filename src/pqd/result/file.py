"""Reads and writes `result.json` and `bench-*.json`."""

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pqd import files
from pqd.config import Config
from pqd.errors import UserError, one_line
from pqd.identity import run_hash, run_name
from pqd.result.fields import SCHEMA, Provenance, Result
from pqd.stages import spell, spelled

FILE = "result.json"

R = TypeVar("R")


def started(config: Config) -> Result:
    """Returns the result of a run that has just started."""
    return Result(
        name=run_name(config),
        status="running",
        config=asdict(config),
        order=[stage.name for stage in spelled(config.order.name)],
        config_hash=run_hash(config),
        provenance=Provenance(started=now()),
    )


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(folder: Path, result: Result) -> None:
    """Writes the `result.json` of a folder, replacing the one that is there.

    Raises:
        OSError: it cannot be written. The one that is there then says that the run failed, if it
            said that it was running.
    """
    try:
        files.write_json(folder / FILE, asdict(result))
    except OSError:
        if result.status != "running":  # a word in place of one as long needs no space
            with suppress(OSError, ValueError), (folder / FILE).open("r+b") as file:
                content = file.read()
                file.seek(content.index(b'"status": "running",'))
                file.write(b'"status": "failed" ,')
        raise


def read(folder: Path) -> Result:
    """Reads the `result.json` of a folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of pqd's; the message names file and field.
    """
    return read_as(Result, folder / FILE)


def read_as(kind: type[R], path: Path) -> R:
    """Reads a `Result` or a `Bench`; raises as `read` does."""
    data = files.read_json(path)
    if data.get("schema") not in (1, SCHEMA):
        raise ValueError(
            f"{path}: schema is {data.get('schema')!r}; this version reads 1 and {SCHEMA}"
        )
    return decode(kind, _of_schema_1(data) if data["schema"] == 1 else data, str(path))


def decode(kind: type[R], data: Any, source: str) -> R:
    """Makes one of the dataclasses of `fields` from what JSON gave.

    Raises:
        ValueError: a field is missing or of another type; the message names `source` and field.
    """
    from pydantic import ValidationError

    try:
        # As JSON: of Python's objects strict validation takes none but instances of `kind`.
        found: R = _adapter(kind).validate_json(json.dumps(data))  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "the content"
        given = f" is {first['input']!r}" if first["type"] != "missing" else ""
        raise ValueError(f"{source}: {name}{given[:80]}: {first['msg'].lower()}") from None


def check_free(folder: Path, config: Config) -> None:
    """Sees to it that a run does not replace another one's results.

    Raises:
        UserError: the folder holds the results of another configuration, finished or under way,
            or of the same one, which a dry run would replace; or a `result.json` of something else.
    """
    try:
        there = read(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(one_line(error)) from None
    except ValueError as error:
        raise UserError(
            f"{folder / FILE} is not a result of pqd and would be replaced; choose another folder "
            f"or remove it ({error})"
        ) from None
    if there.status not in ("completed", "running"):
        return
    if there.config_hash != run_hash(config):
        raise UserError(
            f"{folder} holds another configuration's results ({there.name}, {there.status}), which "
            "would be lost; choose another folder or remove this one"
        )
    if config.dry_run:
        raise UserError(
            f"{folder} holds results ({there.name}, {there.status}), which those of a dry run "
            "would replace; choose another folder"
        )


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter  # 0.1 s, for those who read

    return TypeAdapter(kind)


def _of_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Brings what the first version wrote into today's form."""
    config = data.get("config")
    if isinstance(config, dict) and isinstance(config.get("train"), dict):
        train = {k: v for k, v in config["train"].items() if k not in ("epochs", "lr")}
        config = config | {"train": train}
        for key in ("epochs", "lr"):
            for stage, value in (data["config"]["train"].get(key) or {}).items():
                config[stage] = (config.get(stage) or {}) | {key: value}
        stages = (config.get("order") or {}).get("stages", [])
        config["order"] = {"name": spell(stages)}
        data = data | {"config": config, "order": stages}
    return data | {"schema": SCHEMA}
