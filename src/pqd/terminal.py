"""What a terminal can show."""

import io
import logging
import os
import sys


def tolerant_output() -> None:
    """Lets no run fail for what it prints: a character that is not there, a log on a full disk.

    A terminal may know ASCII or Latin-1 only (`LANG=C`, `PYTHONIOENCODING`); a finished run must
    not end in a `UnicodeEncodeError` for a dash in its last line.
    """
    logging.raiseExceptions = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put another there
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Drops what is still to be printed, after a `BrokenPipeError`, as of `pqd ... | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
