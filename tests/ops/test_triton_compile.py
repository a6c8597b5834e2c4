"""What the Triton kernels compile to for an H100, on a machine without a GPU.

The interpreter takes anything; a GPU has 227 KiB of shared memory per program, registers that spill, and tensor
cores that only some tiles reach.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

ON_ONE_HEAD = {"lse_kernel", "probability_kernel", "query_gradient_kernel", "key_gradient_kernel"}
ON_ALL_HEADS = {"gram_kernel", "divergence_kernel", "logit_gradient_kernel"}


@cache
def compiled(**request):
    """Figures of every kernel that the three operators launch with these arguments."""
    command = [sys.executable, Path(__file__).with_name("compile_kernels.py"), json.dumps(request)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == ON_ONE_HEAD | ON_ALL_HEADS
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [
        {"width": 64, "dtype": "float16"},
        {"width": 128, "dtype": "bfloat16", "n_teachers": 32, "n_students": 24},
        {"width": 64, "dtype": "bfloat16", "everything": True},
        {"width": 256, "dtype": "bfloat16", "n_teachers": 64, "n_students": 64},
        {"width": 80, "dtype": "float32"},
    ],
    ids=lambda request: " ".join(str(value) for value in request.values()),
)
def test_every_kernel_fits_an_h100(request_):
    """None spills more than a few registers, none takes too much shared memory, and in 16 bits all use tensor cores."""
    for kernel in compiled(**request_):
        assert kernel["shared"] <= 227 * 1024, kernel
        assert kernel["stack"] <= 256, kernel
        if request_["dtype"] != "float32":
            if kernel["kernel"] in ON_ONE_HEAD:
                assert kernel["wgmma"] > 0, kernel
                assert kernel["mma"] == 0, kernel
            else:
                assert kernel["wgmma"] + kernel["mma"] > 0, kernel
