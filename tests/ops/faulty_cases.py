# SPDX-License-Identifier: Apache-2.0
"""Families of kernels with faults on purpose, for `test_selfcheck.py`."""

import os
import time


def families(dtype, block_size, device):
    def good():
        return 1e-7

    def wrong():
        raise ValueError("fwd: expected the reference's values, got an error of 0.5")

    def raises():
        raise RuntimeError("PassManager::run failed\nat line 3")

    checks = {"good": good, "wrong": wrong, "raises": raises, "hangs": lambda: time.sleep(60)}
    checks |= {"crashes": os.abort, "leaves": lambda: os._exit(3), "good too": good}
    return {name: checks[name] for name in dtype.split(",")} if "," in dtype else checks
