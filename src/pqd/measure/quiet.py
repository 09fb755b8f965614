"""Measurements keep out of each other's way."""

import logging
import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from pqd.locks import held

log = logging.getLogger(__name__)


def one_at_a_time() -> AbstractContextManager[None]:
    """Waits until no other job of this user measures on this machine, then keeps others waiting."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return held(
        Path(tempfile.gettempdir(), f"pqd-latency-{user}.lock"),
        lambda: log.info("another job measures its latency on this machine; waiting for its end"),
    )
