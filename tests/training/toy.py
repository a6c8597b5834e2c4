"""A teacher, a student and a data set small enough to train in a test."""

import torch
from torch.utils.data import Dataset, default_collate
from transformers import T5Config, T5ForConditionalGeneration

from amad.capture.recorder import Recorder
from amad.capture.sites import find_sites
from amad.losses.amad import AttentionAlignment
from amad.losses.logits import LogitsDistillation
from amad.losses.objective import Objective
from amad.losses.task import TaskLoss
from amad.training.arguments import DistillationArguments
from amad.training.pairing import Pairing
from amad.training.trainer import DistillationTrainer


class Sentences(Dataset):
    """Sixteen short sentences of different lengths, with targets of different lengths."""

    def __init__(self, n=16):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        numbers = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 40, (9,), generator=numbers)
        keep = torch.ones(9, dtype=torch.long)
        keep[9 - index % 4 :] = 0 if index % 4 else 1
        labels = torch.randint(3, 40, (4,), generator=numbers)
        labels[4 - index % 3 :] = -100 if index % 3 else labels[4 - index % 3 :]
        return {"input_ids": ids, "attention_mask": keep, "labels": labels}


def t5(heads, layers, width, seed, **more):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=40,
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **more,
    )
    return T5ForConditionalGeneration(config)


def pairing_of(student, teacher):
    return Pairing.make(
        [site.key for site in find_sites(student)], [site.key for site in find_sites(teacher)]
    )


def trainer(folder, *, variant="kl", attention_weight=1.0, student=None, teacher=None, **arguments):
    student = student or t5(2, 1, 16, seed=0)
    teacher = teacher or t5(4, 2, 32, seed=1)
    pairing = pairing_of(student, teacher)
    attention = AttentionAlignment(pairing.pairs, variant=variant)
    if variant == "projected":
        attention.prepare(_records(student))
    chosen = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        "predict_with_generate": False,
        "dataloader_pin_memory": False,
    } | arguments
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationArguments(**chosen),
        objective=Objective(
            {
                "task": (1.0, TaskLoss()),
                "logits": (1.0, LogitsDistillation(2.0)),
                "attention": (attention_weight, attention),
            }
        ),
        train_dataset=Sentences(),
        eval_dataset=Sentences(4),
    )


def _records(student):
    batch = default_collate([Sentences()[0], Sentences()[1]])
    with torch.no_grad(), Recorder(student, find_sites(student), detach=True) as recorder:
        student(**batch)
        return recorder.take(batch)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
