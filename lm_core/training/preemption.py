"""SIGTERM as a request: the run stops where it stands, saves a checkpoint and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(BaseException):
    """SIGTERM arrived. No `Exception`: compilers and callbacks that survive those must not survive this."""


class StopRequest:
    """Listens for SIGTERM while it is entered.

    Attributes:
        wanted: whether the signal has come.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._may_raise = False

    @contextmanager
    def interruptible(self, may_raise: bool = True) -> Iterator[None]:
        """Work that may be thrown away at any point: the signal ends it at once, be it a compilation or a long step.

        Everything else (the optimizer's step, above all) runs to its end first.

        Args:
            may_raise: False when others would wait for this process: then they must agree on where to stop.

        Raises:
            Stopped: the signal came now or before.
        """
        if may_raise and self.wanted:
            raise Stopped
        self._may_raise = may_raise
        try:
            yield
        finally:
            self._may_raise = False
        if may_raise and self.wanted:  # raised within a callback it may have been swallowed
            raise Stopped

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for oneself; only the main thread of a process may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._arrived)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _arrived(self, *_: Any) -> None:
        self.wanted = True
        if self._may_raise:
            self._may_raise = False
            raise Stopped
