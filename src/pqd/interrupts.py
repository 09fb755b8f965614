"""Signals that end a run: none is lost, wherever Python is when it arrives."""

import signal
import sys
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
    sys.unraisablehook = _unraisable


def check() -> None:
    """Raises again what Python swallowed, as it does in destructors and weak references.

    That is where most signals arrive in training: backward is one long call, and the first Python
    code after it is often what PyTorch does for a tensor that has gone.

    Raises:
        KeyboardInterrupt: a signal has arrived since `listen`.
    """
    if _received:
        _stop(_received[-1])


def _stop(number: int, _: FrameType | None = None) -> NoReturn:
    _received.append(number)
    reason = [] if number == signal.SIGINT else [f"stopped by {signal.Signals(number).name}"]
    raise KeyboardInterrupt(*reason)


def _unraisable(swallowed: "sys.UnraisableHookArgs") -> None:
    """Prints nothing about an interrupt that `check` raises again."""
    if not (_received and isinstance(swallowed.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(swallowed)
