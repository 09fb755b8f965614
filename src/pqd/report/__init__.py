"""The report of one or several sweeps: report.html, report.md, points.csv, figures, a table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["build", "points"]


def build(folders: Iterable[Path], output: Path, *, figures: bool = True) -> Path:
    """Writes the report of every result.json below the folders.

    Each file is replaced atomically, so several processes may rebuild the same report at once.

    Args:
        folders: of runs or sweeps; several are joined.
        output: the folder to write report.html, report.md, points.csv, table.tex, frontier.png
            and frontier.svg to; frontier-2 and so on with more families than fit on a page.
        figures: whether to draw the static figures.

    Returns:
        the path of report.html.

    Raises:
        UserError: a folder does not exist, or there is no result.json below any.
    """
    from pqd import files
    from pqd.report import latex, page, static
    from pqd.report.load import load
    from pqd.report.spreadsheet import rows, to_csv
    from pqd.report.view import view

    loaded = load(folders)
    report = view(loaded)
    drawn = static.frontier(report) if figures else {}
    contents: dict[str, str | bytes] = {
        "points.csv": to_csv(rows(loaded)),
        "table.tex": latex.latex(report),
        **drawn,
        "report.md": page.markdown(report, figure="frontier.png" in drawn),
    }
    contents["report.html"] = page.html(report, output, list(contents))
    output.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.write(output / name, content)
    return output / "report.html"


def points(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of points.csv: one per distinct completed run and machine (cheap: no statistics).

    Raises:
        UserError: as for `build`.
    """
    from pqd.report.load import load
    from pqd.report.spreadsheet import rows

    return rows(load(folders))
