"""The steps of a run: entries of the cache, each with the figures that came out of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqd import files
from pqd.cache import Cache, Entry
from pqd.progress import show

FIGURES = "record.json"  # of a cache entry


class Steps:
    """Does what is not in the cache yet."""

    def __init__(self, cache: Cache, run: str) -> None:
        """Takes the cache, and the name of the run for those who wait for it."""
        self.cache, self.run = cache, run

    def entry(
        self, label: str, key: str, make: Callable[[Path], dict[str, Any]], doing: str = ""
    ) -> Entry:
        """Returns a cache entry whose figures are what `make` returns.

        Args:
            label: what is made.
            key: of the entry.
            make: called with the entry's empty folder where it is not there yet.
            doing: what is shown then.
        """

        def fill(folder: Path) -> None:
            if doing:
                show(f"{label:<8}  {doing}")
            files.write_json(folder / FIGURES, make(folder))

        return self.cache.get(key, f"{self.run} {label}", fill)


def figures(entry: Entry) -> dict[str, Any]:
    """Returns the figures of an entry made by `Steps`."""
    return files.read_json(entry.folder / FIGURES)
