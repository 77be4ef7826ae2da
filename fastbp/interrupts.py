"""Ctrl-C during training: held back until a whole batch is done and noted."""

import signal
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any


class Interrupts:
    """Holds back Ctrl-C, so that it finds training between two batches, with all notes taken.

    Python calls the handler of Ctrl-C, which raises KeyboardInterrupt, between any two operations of the main thread:
    also after some lines of a curve, or after the weights and before the state of the optimizer. Between `hold` and the
    end of the context it is called by `check` and within `let_through` only; what is left, at the end. Other threads
    are never interrupted: there, and where the program has no handler, nothing is done.
    """

    def __init__(self):
        self._handler: Any = None  # the program's
        self._received = self._raises_at_end = False

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self._release()
        self.check()
        if self._raises_at_end and error is None:
            raise KeyboardInterrupt

    def hold(self):
        """Hold back Ctrl-C from now on."""
        if current_thread() is main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler) and handler != self._receive:
                self._handler = handler
                signal.signal(signal.SIGINT, self._receive)

    def check(self):
        """Call the program's handler if there was a Ctrl-C."""
        if self._received:
            self._received = False
            self._handler(signal.SIGINT, None)

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
        self._received = True

    def _release(self):
        """Give the program its handler back; return whether it was not in place."""
        # Code of the user may have set another one meanwhile.
        is_held = self._handler is not None and signal.getsignal(signal.SIGINT) == self._receive
        if is_held:
            signal.signal(signal.SIGINT, self._handler)
        return is_held
