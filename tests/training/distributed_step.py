"""One optimiser step of the toy pair, for ``torchrun``; the first process saves the student's weights.

torchrun --nproc-per-node 2 distributed_step.py FOLDER BATCH_PER_PROCESS
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import toy
from safetensors.torch import save_model

folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
trainer = toy.trainer(
    folder / "trainer",
    variant="projected",
    per_device_train_batch_size=batch_size,
    ddp_find_unused_parameters=False,
    train_sampling_strategy="sequential",
)
trainer.train()
if trainer.is_world_process_zero():
    save_model(trainer.model, str(folder / "student.safetensors"))
    parts = next(entry for entry in trainer.state.log_history if "loss_attention" in entry)
    (folder / "attention.txt").write_text(repr(parts["loss_attention"]))
# A process that leaves first, or with threads of the group alive, can abort the others.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
