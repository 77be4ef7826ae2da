"""Ctrl-C during training: held back until a whole batch is done and noted."""

import os
import signal
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Holds back Ctrl-C, so that it finds training between two batches, with all notes taken.

    Python calls the handler of Ctrl-C, which raises KeyboardInterrupt, between any two operations of the main thread:
    also after some lines of a curve, or after the weights and before the state of the optimizer. Between `hold` and the
    end of the context it is called by `check` and within `let_through` only; what is left, at the end. Other threads
    are never interrupted: there, and where the program has no handler, nothing is done.
    """

    def __init__(self):
        self._process = os.getpid()
        self._is_over = False
        self._handler: Any = None  # the program's
        self._received: Any = None  # the arguments of a call that was held back
        self._raises_at_end = False

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self._is_over = True
        self._release()
        self.check()
        if self._raises_at_end and error is None:
            raise KeyboardInterrupt

    def hold(self):
        """Hold back Ctrl-C from now on."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and handler != self._receive:
            self._handler = handler
            try:
                signal.signal(signal.SIGINT, self._receive)
            except ValueError:  # not in the main thread of the interpreter
                self._handler = None

    def check(self):
        """Call the program's handler if there was a Ctrl-C."""
        if self._received is not None:
            call, self._received = self._received, None
            self._handler(*call)

    @contextmanager
    def let_through(self):
        """Let Ctrl-C interrupt this block: code of the user, or some that takes seconds."""
        was_held = self._release()
        try:
            self.check()
            yield
        finally:
            if was_held:
                self.hold()

    def raise_at_end(self):
        """Raise KeyboardInterrupt at the end of the context, unless it ends with an error."""
        self._raises_at_end = True

    def _receive(self, number, frame):
        # A process that another thread forks meanwhile has this handler, and so has one in which the handler of
        # another signal raises an error while ours is taken back.
        if self._is_over or os.getpid() != self._process:
            self._release()
            self._handler(number, frame)
        else:
            self._received = number, frame

    def _release(self):
        """Give the program its handler back; return whether ours was in its place."""
        # Code of the user may have set another one meanwhile.
        was_held = self._handler is not None and signal.getsignal(signal.SIGINT) == self._receive
        if was_held:
            signal.signal(signal.SIGINT, self._handler)
        return was_held
