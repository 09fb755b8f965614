"""The steps of a run: entries of the cache, each with the figures that came out of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pqd import files
from pqd.cache import Cache, Entry
from pqd.progress import show

FIGURES = "record.json"  # of a cache entry


class Steps:
    """Does what is not in the cache yet."""

    def __init__(self, cache: Cache, run: str, wanted: Mapping[str, str]) -> None:
        """Takes the cache, and what others know its entries by.

        Args:
            cache: of the run.
            run: its name, for those who wait for it.
            wanted: see `pqd.identity.wanted`.
        """
        self.cache, self.run, self.wanted = cache, run, wanted

    def entry(
        self, label: str, key: str, make: Callable[[Path], dict[str, Any]], doing: str = ""
    ) -> Entry:
        """Returns a cache entry whose figures are what `make` returns.

        Args:
            label: what is made, one of `wanted`.
            key: of the entry.
            make: called with the entry's empty folder where it is not there yet.
            doing: what is shown then.
        """

        def fill(folder: Path) -> None:
            if doing:
                show(f"{label:<8}  {doing}")
            files.write_json(folder / FIGURES, make(folder))

        return self.cache.get(key, f"{self.run} {label}", fill, self.wanted[label])


def figures(entry: Entry) -> dict[str, Any]:
    """Returns the figures of an entry made by `Steps`."""
    return files.read_json(entry.folder / FIGURES)
