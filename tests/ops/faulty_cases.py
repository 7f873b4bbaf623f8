# SPDX-License-Identifier: Apache-2.0
"""Families of kernels with faults on purpose, for `test_selfcheck.py`."""

import os
import time


def good():
    return 1e-7


def wrong():
    raise ValueError("fwd: expected the reference's values, got an error of 0.5")


def raises():
    raise RuntimeError("PassManager::run failed\nat line 3")


class DiesAfterAFault(dict):
    """Ends the process between two families, as an illegal access that shows at the next wait."""

    def items(self):
        self.failed = False
        for name in self:
            yield name, self.fail if name == "wrong" else good
            if self.failed:
                os._exit(4)

    def fail(self):
        self.failed = True
        wrong()


def families(dtype, block_size, device):
    if dtype == "fp32":
        return DiesAfterAFault.fromkeys(["good", "wrong", "good too", "good at last"])
    checks = {"good": good, "wrong": wrong, "raises": raises, "hangs": lambda: time.sleep(60)}
    return checks | {"crashes": os.abort, "leaves": lambda: os._exit(3), "good too": good}
