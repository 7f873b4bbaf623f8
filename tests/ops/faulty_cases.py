# SPDX-License-Identifier: Apache-2.0
"""Families of kernels with faults on purpose, for `test_selfcheck.py`."""

import os
import sysconfig
import time

import torch
from triton.runtime.build import compile_module_from_src


def good():
    return 1e-7


def wrong():
    raise ValueError("fwd: expected the reference's values, got an error of 0.5")


def raises():
    raise RuntimeError("PassManager::run failed\nat line 3")


def no_compiler():
    """What Triton does on a machine that has none."""
    path, os.environ["PATH"] = os.environ["PATH"], ""
    try:
        compile_module_from_src("int nothing;", "nothing")
    finally:
        os.environ["PATH"] = path


def no_header():
    paths = sysconfig.get_paths
    sysconfig.get_paths = lambda *args, **kw: paths(*args, **kw) | {"include": "/nowhere"}
    compile_module_from_src("#include <Python.h>\n", "nothing")


def full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


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
    if dtype == "tf32":
        return {"good": good}
    if dtype == "fp16":
        return {"no compiler": no_compiler, "no header": no_header, "full": full}
    checks = {"good": good, "wrong": wrong, "raises": raises, "hangs": lambda: time.sleep(60)}
    return checks | {"crashes": os.abort, "leaves": lambda: os._exit(3), "good too": good}
