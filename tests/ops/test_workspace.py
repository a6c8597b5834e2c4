"""Memory that is handed on."""

import pytest
import torch

from amad.ops import workspace
from amad.ops.workspace import Workspace

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch):
    monkeypatch.setattr(workspace, "_waiting", [])


def test_rooms_do_not_overlap_and_keep_their_name():
    memory = Workspace(1000, CPU)
    first, second = memory.room("a", 30, torch.float32), memory.room("b", 7, torch.float64)
    first.fill_(1.0)
    second.fill_(2.0)
    assert memory.room("a", 30, torch.float32).sum() == 30
    assert second.data_ptr() - first.data_ptr() == 128


def test_a_closed_workspace_hands_its_memory_on():
    memory = Workspace(1000, CPU)
    place = memory.room("a", 10, torch.float32).data_ptr()
    memory.close()
    memory.close()
    smaller, other = Workspace(500, CPU), Workspace(500, CPU)
    assert smaller.room("a", 10, torch.float32).data_ptr() == place
    assert other.room("a", 10, torch.float32).data_ptr() != place
    with pytest.raises(AssertionError, match="closed"):
        memory.room("c", 10, torch.float32)


def test_little_waits():
    for n_bytes in (100, 400, 300, 200, workspace.LARGEST_HANDED_ON + 1):
        workspaces = [Workspace(n_bytes, CPU) for _ in range(2)]
        for one in workspaces:
            one.close()
    assert [memory.numel() for memory in workspace._waiting] == [400, 400]
