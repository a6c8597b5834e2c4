"""Compile the Triton kernels for an H100 as the operators would launch them, on a machine without a GPU.

Run as a script with the arguments of `launch_all` as JSON; prints a JSON line for each kernel. `test_triton_compile.py`
does so, in a process of its own, as kernels are something else where the interpreter was asked for.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl import triton as kl_triton
from amad.ops.attention_gram import triton as gram_triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
launch = JITFunction.run
found = set()


class H100:
    """What Triton asks of a driver before it compiles."""

    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))


def compile_instead(kernel, *args, grid, warmup, **kwargs):
    """In the place of a launch: all of it up to the launch."""
    compiled = launch(kernel, *args, grid=grid, warmup=True, **kwargs)
    if compiled.hash not in found:
        found.add(compiled.hash)
        options = {name: kwargs[name] for name in ("num_warps", "num_stages")}
        constants = {name: value for name, value in kwargs.items() if isinstance(value, bool | str)}
        sys.stdout.write(json.dumps(figures(kernel.__name__, compiled) | options | constants) + "\n")


def figures(name, compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "wgmma": len(re.findall("wgmma.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
    }


def record(n_heads, width, dtype, grad=False, **fields):
    # As attention layers make them: (batch, token, head, width) in memory.
    query, key = (torch.zeros(2, 512, n_heads, width, dtype=dtype).transpose(1, 2) for _ in range(2))
    site = SiteKey("encoder.self", 0)
    return AttentionRecord(site, query.requires_grad_(grad), key.requires_grad_(grad), width**-0.5, **fields)


def launch_all(width, dtype, n_teachers=16, n_students=12, everything=False):
    fields = {}
    if everything:
        fields = {
            "mask": torch.zeros(2, 1, 512, 512, dtype=dtype),
            "position_bias": torch.zeros(1, n_students, 512, 512, dtype=dtype, requires_grad=True),
            "causal_offset": 0,
            "window": 128,
            "segments": (torch.zeros(2, 512, dtype=torch.long),) * 2,
            "softcap": 50.0,
            "sinks": torch.zeros(n_students, dtype=dtype, requires_grad=True),
        }
        n_teachers = n_students
    student = record(n_students, width, dtype, grad=True, **fields)
    teacher = record(n_teachers, width, dtype, **fields)
    gram = gram_triton.attention_gram(student, teacher)
    divergence = kl_triton.aligned_kl(student, teacher, gram.cross.softmax(-1))
    by_row = kl_triton.row_aligned_kl(student, teacher)
    (gram.student.sum() + divergence.sum() + by_row.sum()).backward()


if __name__ == "__main__":
    driver.set_active(H100())
    JITFunction.run = compile_instead
    request = json.loads(sys.argv[1])
    launch_all(**request | {"dtype": getattr(torch, request["dtype"])})
