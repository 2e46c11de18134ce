"""Operations counted without data are those of a real training step."""

import torch
from notebooks import definitions
from ranks import stems
from tiny import seeded, tiny_prior, tiny_profile, tiny_vqvae
from torch.utils.flop_counter import FlopCounterMode

from hybridsep.data.codes import CodeSet
from hybridsep.training.codec import VQVAETask
from hybridsep.training.prior import PriorTask


def test_operations_without_data_are_those_of_a_real_training_step():
    songs = (torch.randint(12, (2, 90), generator=seeded()).to(torch.int16),)
    tasks = [
        VQVAETask(tiny_vqvae().train(), stems(), 4.0, torch.float32),
        PriorTask(tiny_prior(), CodeSet(songs), 1, torch.float32),
    ]
    counted = definitions("08_reproduce").training_operations(tiny_profile())
    for task, row in zip(tasks, counted.itertuples(), strict=True):
        with FlopCounterMode(display=False) as counter:
            task.step(3, seeded()).loss.backward()
        assert row.operations == counter.get_total_flops() * task.module.settings.training.steps > 0
        assert row.parameters == sum(p.numel() for p in task.module.parameters())
