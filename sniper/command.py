# SPDX-License-Identifier: Apache-2.0
"""How a command's process ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit status; Ctrl-C leaves no traceback."""
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    # Nothing is left to stop, and Python's own last steps answer Ctrl-C with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
