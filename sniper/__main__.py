# SPDX-License-Identifier: Apache-2.0
"""`python -m sniper COMMAND ...`, where the console command is not on PATH."""

import sys

from sniper.cli import main

sys.exit(main())
