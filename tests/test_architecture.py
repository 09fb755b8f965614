"""The picture in ARCHITECTURE.md is what the imports say."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pqd"


def rooms(lines):
    """Returns the rooms that lines name, each with the number of its first line."""
    found = {}
    for number, line in enumerate(lines):
        for name in re.findall(r"(\w+)(?:/|\.py\b)", line):
            if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists():
                found.setdefault(name, number)
    return found


def imported(file):
    """Returns the rooms that a file imports when it is imported itself."""
    names = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "pqd":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pqd."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pqd.")}
    return names


def test_no_import_points_up():
    picture = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")[1]
    tree, listed = (rooms(part.splitlines()) for part in picture.split("\n\n"))
    there = {path.stem for path in SOURCE.iterdir() if not path.name.startswith(("__", "py."))}
    assert tree.keys() | listed.keys() == there
    for room, line in listed.items():
        folder = SOURCE / room
        for file in folder.rglob("*.py") if folder.is_dir() else [SOURCE / f"{room}.py"]:
            others = imported(file) - {room}
            up = {o for o in others if o in tree or listed.get(o, line) < line}
            assert not up, f"{file.relative_to(ROOT)} imports {up}"
