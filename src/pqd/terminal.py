"""What a terminal can show."""

import io
import sys


def tolerant_output() -> None:
    """Lets stdout and stderr replace what they cannot encode, rather than raise an error.

    A terminal may know ASCII or Latin-1 only (`LANG=C`, `PYTHONIOENCODING`); a finished run must
    not end in a `UnicodeEncodeError` for a dash in its last line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put another there
            stream.reconfigure(errors="replace")
