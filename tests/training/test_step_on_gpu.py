"""What of a training step can break on a GPU alone: autocast, compiling, fused optimisers, waiting hosts, NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from editar.config import TrainConfig, plain_training
from editar.models.gpt import GPT
from editar.models.text import TextEncoder
from editar.runtime.device import send
from editar.runtime.distributed import Ranks
from editar.training.checkpoint import Checkpointer, resume, training_state, whole_weights
from editar.training.losses import LossOutput, Objective, condition_drops
from editar.training.optim import make_optimizers
from editar.training.parallel import clip_gradients, parallelise
from tests.helpers.cuda import no_waiting

pytestmark = pytest.mark.gpu

SMALL = {"dim": 64, "n_layer": 2, "n_head": 2}  # heads of 32: what flash kernels take
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def config(**changes: object) -> TrainConfig:
    sections = {"gpt": "nano", "rope": "shared", "tokenizer": "nano", "text": "nano", "teacher": "none"}
    return plain_training(sections, image_size=64, gpt=dict(SMALL), **{"optim": {"lr": 1e-3}} | changes)


def objective(cfg: TrainConfig, device: torch.device) -> Objective:
    torch.manual_seed(3)
    gpt = GPT(cfg.gpt)
    torch.nn.init.normal_(gpt.output.weight, std=0.02)  # the initial zeros would hide everything
    return Objective(gpt.to(device), cfg.loss)


def batch(device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(5)
    source, target = torch.randint(512, (2, 8, 64), generator=generator)
    return source.to(device), torch.randn(8, 24, 96, generator=generator).to(device), target.to(device)


def losses(module: torch.nn.Module, values: Batch, half: bool = False) -> LossOutput:
    with torch.autocast(values[0].device.type, torch.bfloat16, enabled=half):
        found: LossOutput = module(*values)
    return found


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_is_near_float32(gpu: torch.device, compiled: bool) -> None:
    """Loss within 1 %, the gradient's direction within 2 %."""
    if gpu.type == "cpu" and compiled:
        pytest.skip("a rehearsal does not compile")
    found = []
    for half in (False, True):
        whole = objective(config(), gpu)
        if compiled and half:
            whole.gpt.layers.compile()
        output = losses(whole, batch(gpu), half)
        output.terms["token"].backward()
        found.append((output.terms["token"].item(), torch.cat([p.grad.flatten() for p in whole.gpt.parameters()])))
    (exact, slope), (rounded, other) = found
    assert rounded == pytest.approx(exact, rel=0.01) and rounded != exact
    assert torch.cosine_similarity(slope, other, dim=0) > 0.98


@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains(gpu: torch.device, compiled: bool) -> None:
    """Ten steps on one batch, compiled blocks beside eager ones."""
    if gpu.type == "cpu" and compiled:
        pytest.skip("a rehearsal does not compile")
    cfg, values, seen = config(compile=compiled), batch(gpu), []
    whole = objective(cfg, gpu)
    module, optimizers = parallelise(whole, cfg, Ranks(0, 1, gpu)), make_optimizers(whole.gpt, cfg.optim)
    for _ in range(10):
        whole.gpt.zero_grad(set_to_none=True)
        token = losses(module, values, half=True).terms["token"]
        token.backward()
        clip_gradients(whole.gpt, cfg.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
        seen.append(token.detach())
    assert seen[-1] < seen[0] - 0.2


def test_a_micro_batch_does_not_wait_for_the_gpu(gpu: torch.device) -> None:
    """From the draws' numbers to the optimiser's step; the loop itself waits once a step, for the losses."""
    cfg, values = config(), batch(gpu)
    whole = objective(cfg, gpu)
    optimizers = make_optimizers(whole.gpt, cfg.optim)
    before = whole.gpt.output.weight.detach().clone()
    for first in (True, False):  # the first one brings the rotary table to the GPU
        with nullcontext() if first else no_waiting(gpu):
            whole.gpt.zero_grad(set_to_none=True)
            drops = condition_drops(send(torch.rand(8, dtype=torch.float64), gpu), cfg.drop)
            with torch.autocast(gpu.type, torch.bfloat16):
                found: LossOutput = whole(*values, *drops)
            torch.stack(list(found.terms.values())).sum().backward()
            clip_gradients(whole.gpt, cfg.optim.clip)
            for optimizer in optimizers:
                optimizer.step()
    after = whole.gpt.output.weight.detach()
    assert after.isfinite().all() and not torch.equal(after, before)


def test_texts_do_not_wait_for_the_gpu(gpu: torch.device) -> None:
    cfg = config()
    encoder = TextEncoder(cfg.text, gpu)
    words = ["make the red circle blue", "remove the square", "make the red circle blue"]
    tokens = encoder.tokenize(words)
    encoder.embed(tokens)
    with no_waiting(gpu):
        found = encoder.embed(tokens)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("background", [True, False])
def test_the_optimiser_resumes_bit_for_bit(gpu: torch.device, tmp_path: Path, background: bool) -> None:
    """Fused AdamW's moments and step counts through a checkpoint, under the same gradients."""
    cfg, ranks = config(), Ranks(0, 1, gpu)
    kept = objective(cfg, gpu).gpt
    optimizers = make_optimizers(kept, cfg.optim)
    for step in range(2):
        same_gradients(kept, step)
        optimizers[0].step()
    saver = Checkpointer(tmp_path, ranks, keep=1, keep_every=0, background=background)
    saver.save(2, training_state(kept, optimizers, None), whole_weights(kept, None, ranks))
    expected = {name: value.clone() for name, value in kept.state_dict().items()}
    same_gradients(kept, 2)
    optimizers[0].step()  # while the checkpoint is being written
    saver.finish()
    again = GPT(cfg.gpt).to(gpu)
    others = make_optimizers(again, cfg.optim)
    assert resume(tmp_path, again, others, None, ranks) == 2
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    same_gradients(again, 2)
    others[0].step()
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))
    assert not torch.equal(again.output.weight, expected["output.weight"])


def same_gradients(gpt: GPT, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in gpt.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_of_one_process_changes_nothing(gpu: torch.device, parallel: str) -> None:
    values = batch(gpu)
    alone = objective(config(precision="fp32"), gpu)
    losses(alone, values).terms["token"].backward()
    norm = clip_gradients(alone.gpt, 1.0)
    with group_of_one(gpu):
        cfg = config(parallel=parallel, precision="fp32")
        whole = objective(cfg, gpu)
        module = parallelise(whole, cfg, Ranks(0, 1, gpu))
        assert module is not whole or parallel == "fsdp"
        losses(module, values).terms["token"].backward()
        assert clip_gradients(whole.gpt, 1.0).item() == pytest.approx(norm.item(), rel=1e-4)
        total = torch.ones(1, device=gpu)
        dist.all_reduce(total)
        assert total.item() == 1
