"""Signals that end a run: none is lost, wherever Python is when it arrives."""

import signal
from types import FrameType
from typing import NoReturn

_received: list[int] = []


def listen() -> None:
    """Takes SIGTERM as Ctrl-C, or else joblib's workers would train on without us.

    A SIGINT that is ignored, as in background jobs of a shell, stays so.
    """
    _received.clear()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def check() -> None:
    """Raises again what Python swallowed, as it does in destructors and weak references.

    Raises:
        KeyboardInterrupt: a signal has arrived since `listen`.
    """
    if _received:
        _stop(_received[-1])


def _stop(number: int, _: FrameType | None = None) -> NoReturn:
    _received.append(number)
    reason = [] if number == signal.SIGINT else [f"stopped by {signal.Signals(number).name}"]
    raise KeyboardInterrupt(*reason)
