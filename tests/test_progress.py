import io
import logging

import pytest
from rich.console import Console
from rich.table import Table

from pqd.progress import (
    StageProgress,
    duration,
    make_console,
    show,
)


@pytest.fixture
def table():
    """A table wider than a terminal usually is."""
    table = Table("run", "order")
    table.add_row("n" * 90, "pqd")
    return table


def console(**kwargs):
    return Console(file=io.StringIO(), highlight=False, **kwargs)


def metrics(epoch, **changes):
    return {
        **{"epoch": epoch, "loss": 0.5, "train_accuracy": 60.0, "validation_accuracy": 61.25},
        **{"images_per_s": 1234.4, "seconds": 2.0, "eta_s": 75.0},
        **changes,
    }


def run(out, epochs, **changes):
    with StageProgress("prune", epochs, 10 * epochs, out) as progress:
        for epoch in range(1, epochs + 1):
            for step in range(10):
                progress.step(10 * (epoch - 1) + step)
            progress.epoch(metrics(epoch, **changes))
    return out.file.getvalue()


def test_without_a_terminal_one_line_per_epoch():
    assert run(console(width=40), 2) == (
        "prune     epoch 1/2  loss 0.5000  validation 61.25 %  1,234 images/s  1m 15s left\n"
        "prune     epoch 2/2  loss 0.5000  validation 61.25 %  1,234 images/s  done\n"
    )


@pytest.mark.parametrize(
    ("epochs", "lines"), [(1, 1), (2, 2), (19, 19), (20, 20), (21, 20), (200, 20), (1000, 20)]
)
def test_at_most_twenty_lines_with_the_first_and_the_last_epoch(epochs, lines):
    text = run(console(), epochs).splitlines()
    assert len(text) == lines
    assert f" 1/{epochs} " in text[0]
    assert f" {epochs}/{epochs} " in text[-1]


def test_without_validation_the_training_accuracy_is_shown():
    out = console()
    given = metrics(1)
    del given["validation_accuracy"]
    with StageProgress("baseline", 3, 30, out) as progress:
        progress.epoch(given)
    assert "train 60.00 %" in out.file.getvalue()


def test_on_a_terminal_a_bar_that_fits_eighty_columns():
    out = console(force_terminal=True, width=80, color_system=None)
    text = run(out, 4, images_per_s=12345.0)
    last = text.split("\x1b[2K")[-1].splitlines()[0].rstrip()
    assert "prune" in last
    assert "4/4 loss 0.5000  validation 61.25 %  12,345 images/s" in last
    assert last.endswith("00:00")
    assert len(last) <= 80


def test_an_interrupted_bar_stops_and_lets_the_interrupt_through():
    out = console(force_terminal=True, width=80)
    progress = StageProgress("prune", 4, 40, out)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert out.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m 00s")),
        *((184, "3m 04s"), (3599.6, "1h 00m"), (7500, "2h 05m"), (360000, "100h 00m")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_where_there_is_no_terminal_the_console_is_wide_enough(table, monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    make_console().print(table)
    assert "n" * 90 in capsys.readouterr().out


def test_what_is_shown_is_also_logged(table, caplog):
    """And so it is in a job's log file, whatever is markup elsewhere."""
    out = console(width=160)
    out.print(table)
    with caplog.at_level(logging.INFO, "pqd.progress"):
        show("[a] line", console())
        show(table, console(width=40))
    line, logged = (record.getMessage() for record in caplog.records)
    assert line == "[a] line"
    assert logged == out.file.getvalue().rstrip()
