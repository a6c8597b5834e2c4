import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "distributed_step.py"


def step(folder, n_processes, batch_size):
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={n_processes}",
    ]
    finished = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(batch_size)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return load_file(folder / "student.safetensors"), float((folder / "attention.txt").read_text())


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_make_the_update_of_one(tmp_path):
    alone, alone_loss = step(tmp_path / "alone", 1, 8)
    together, together_loss = step(tmp_path / "together", 2, 4)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-6)
    assert together_loss == pytest.approx(alone_loss, rel=1e-5)
