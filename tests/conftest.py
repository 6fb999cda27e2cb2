"""Let Ctrl-C reach the tests that send it, also where whoever started them ignores it, as a background job does."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
