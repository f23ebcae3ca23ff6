"""One model on several processes: DDP, or FSDP2 for sizes whose weights, gradients and moments do not fit.

Parameter names stay those of the plain GPT either way, so a checkpoint does not depend on how it was trained.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from editar.config import TrainConfig
from editar.errors import ConfigError
from editar.runtime.distributed import Ranks
from editar.training.losses import Objective


def parallelise(objective: Objective, cfg: TrainConfig, ranks: Ranks) -> nn.Module:
    """Make blocks recompute or compile as configured, and wrap for `ranks` -> the module to call.

    A process on its own needs no wrapping. FSDP shards every block and the rest as groups of their own: weights
    and moments float32, gathered and multiplied in bfloat16 where `precision` says so, gradients summed
    in float32.
    """
    gpt = objective.gpt
    gpt.recompute = cfg.activation_checkpointing
    if cfg.compile:
        for layer in gpt.layers:
            layer.compile()  # in place: names stay
    if not dist.is_initialized():
        return objective
    if cfg.parallel == "ddp":
        # The null tables are equal from the start and never change, so no buffer is sent around.
        with warnings.catch_warnings():  # newer torch has another name for it, which 2.6 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    policy = MixedPrecisionPolicy()
    if cfg.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in gpt.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)  # in place as well
    return objective


def micro_batch(cfg: TrainConfig, world_size: int) -> int:
    """Samples a process handles at once: the largest divisor of its share of `global_batch` that is at
    most `micro_batch`; the rest is gradient accumulation. Raises ConfigError if there is no equal share."""
    if cfg.global_batch % world_size:
        raise ConfigError(
            f"global_batch={cfg.global_batch} is not divisible by {world_size} processes; "
            f"use a number of processes that divides it, or another global_batch"
        )
    share = cfg.global_batch // world_size
    return max(size for size in range(1, min(share, cfg.micro_batch) + 1) if share % size == 0)


def average_gradients(module: nn.Module, ranks: Ranks) -> None:
    """The mean of every gradient over processes, in one transfer: for small models in several calls, which DDP does
    not wrap."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if ranks.size > 1 and gradients:
        flat = ranks.sum_(torch.cat([gradient.flatten() for gradient in gradients])) / ranks.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def sync_gradients(wrapped: nn.Module, last: bool) -> None:
    """Whether the coming backward pass is the last of its step, and so averages gradients over processes."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = last
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)


def clip_gradients(model: nn.Module, most: float) -> torch.Tensor:
    """Scale gradients to global norm `most` if they exceed it -> the norm before, over all processes."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def unfit_weights(model: nn.Module) -> list[str]:
    """Trained weights of which this process holds a part that is not finite; one host-device synchronisation."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    own = [p.to_local() if isinstance(p, DTensor) else p for p in trained.values()]
    fit = torch.stack([torch.isfinite(p).all() for p in own]).tolist()
    return [name for name, fine in zip(trained, fit, strict=True) if not fine]


def full_state(state: dict[str, Any], ranks: Ranks) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU of the first process, {} on the others. Every process must call it."""
    whole = {}
    for name, value in state.items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value  # all processes take part
        if ranks.is_main:
            whole[name] = tensor.detach().cpu()
    return whole
