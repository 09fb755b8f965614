"""Keys of the configuration that are not there: old ones name their successor, others the nearest.

Hydra lets `+key=value` add any key, also to settings whose names are fixed; here it is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig

from pqd.errors import UserError, nearest

# What a key of an earlier version is now, the first that fits.
RENAMED = {
    r"train\.(epochs|lr)\.(\w+)": r"\2.\1",
    r"train\.(epochs|lr)": r"<stage>.\1, each stage's own, e.g. prune.\1",
    r"order\.stages": "order.name, spelled from the stages' letters, e.g. order.name=pqd",
    r"quantize\.reduce_range": "quantize.weight_bits, e.g. quantize.weight_bits=7",
    r"model((\.\w+)*)": r"backbone\1",
    r"tags": "logger.tags",
}


def check(cfg: DictConfig, kind: type) -> None:
    """Sees to it that a composed configuration has no keys but those of the schema.

    Args:
        cfg: the configuration.
        kind: the schema's dataclass. What a field of type `dict` holds is not checked.

    Raises:
        UserError: it has; the message names the nearest of the schema's, or an old one's successor.
    """
    for key in _unknown(cfg, kind, ""):
        raise refused(key, list(names(kind)))


def refused(key: str, known: list[str]) -> UserError:
    """Builds the error for an unknown key.

    Args:
        key: dotted.
        known: all dotted keys.
    """
    if now := successor(key):
        return UserError(f"{key} is now {now}")
    group, _, last = key.rpartition(".")
    alike = [name for name in known if name.rpartition(".")[2] == last]  # in another group
    near = [name for name in nearest(key, known, 3) if not key.startswith(f"{name}.")]
    if near := near or alike:
        return UserError(f"{key} is no setting; did you mean {near[0]}?")
    group = group if group in known else ""
    members = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group]
    return UserError(
        f"{key} is no setting; {group or 'the configuration'} has {', '.join(members)}"
    )


def successor(key: str) -> str | None:
    """Returns what a key of an earlier version is called now, None if it never was one."""
    for old, new in RENAMED.items():
        if match := re.fullmatch(old, key):
            return match.expand(new)
    return None


def explained(text: str, kind: type) -> str:
    """Returns what to tell of an error of Hydra's, which may be about a key not in the schema."""
    match = re.search(r"Could not override '([^'@]+)'|full_key: ([\w.]+)", text)
    if match:
        key, known = match[1] or match[2], list(names(kind))
        if key not in known and not key.startswith("hydra."):
            return str(refused(key, known))
    text = re.sub(r" To append to your config use \S+", "", text)  # which no setting takes
    return re.sub(r" full_key: (\S+)( \w+_type=\S+)*", r" (\1)", text)


def names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of all settings and groups of a schema."""
    for name, inner in _members(kind).items():
        yield prefix + name
        if is_dataclass(inner):
            yield from names(inner, f"{prefix}{name}.")


def _members(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {of.name: hints.get(of.name, of.type) for of in fields(kind)}


def _unknown(cfg: DictConfig, kind: Any, prefix: str) -> Iterator[str]:
    members = _members(kind)
    for name in map(str, cfg):
        key, node = f"{prefix}{name}", cfg._get_node(name)
        if name not in members:
            yield from _leaves(key, node)
        elif is_dataclass(members[name]) and isinstance(node, DictConfig):
            yield from _unknown(node, members[str(name)], f"{key}.")


def _leaves(key: str, node: Any) -> Iterator[str]:
    """The keys that were added: of a group, those in it."""
    if isinstance(node, DictConfig) and len(node):
        for name in map(str, node):
            yield from _leaves(f"{key}.{name}", node._get_node(name))
    else:
        yield key
