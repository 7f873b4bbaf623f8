# SPDX-License-Identifier: Apache-2.0
"""The real cases of the self-check, in an interpreter that is quicker, for `test_selfcheck.py`."""

import quick_interpreter  # noqa: F401

from sniper.ops.selfcheck_cases import families

__all__ = ["families"]
