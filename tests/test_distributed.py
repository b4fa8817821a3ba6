"""Data-parallel training: each choice has a gradient of every parameter in every step, on every process."""

import subprocess
import sys
from pathlib import Path

import pytest

WORLD = 2
STEPS = 3


def train(rank: int, store: str) -> None:
    """Train every choice for some steps; the processes must end with the same parameters."""
    import on_device
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for name, kind, position in on_device.ENCODER:
        model = on_device.asr_model(name, kind, position, dropout_rate=0.1).train()
        parallel = DistributedDataParallel(model, find_unused_parameters=False)
        optimiser = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
        given = on_device.batch()
        given["speech"] = given["speech"] * (1 + rank)  # each has data of its own
        for _ in range(STEPS):
            optimiser.zero_grad()
            parallel(**given)[0].backward()
            optimiser.step()
        total = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
        totals = [torch.empty_like(total) for _ in range(WORLD)]
        distributed.all_gather(totals, total)
        assert torch.isfinite(total).all() and torch.equal(*totals), (name, kind, position)
        print(name, kind, position, flush=True)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_each_choice_trains_on_two_processes_with_no_parameter_unused(tmp_path):
    from on_device import ENCODER

    program = f"import test_distributed, sys; test_distributed.train(int(sys.argv[1]), {str(tmp_path / 'store')!r})"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
        assert len(out.splitlines()) == len(ENCODER)
