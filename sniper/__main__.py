# SPDX-License-Identifier: Apache-2.0
"""`python -m sniper COMMAND ...`, where the console command is not on PATH."""

from sniper.cli import run

run()
