"""What holds for all tests."""

from __future__ import annotations

import signal

# Whoever is started in the background ignores Ctrl-C, and so does all that it starts: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)
