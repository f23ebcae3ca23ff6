"""The transformer: names, positions, teacher forcing, cached decoding, greedy sequences.

Its training (condition dropout, gradients, optimiser steps) is in `gpt_training`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from editar.config import GPTConfig, LossConfig, SamplingConfig
from editar.models.gpt import GPT, KVCache
from editar.models.rope import rope_table
from editar.parity import gpt_training
from editar.parity.checks import Check, Entries, Golden, GoldenError, Skipped
from editar.parity.gpt_training import drops, prompts
from editar.runtime.files import load_state
from editar.sampling.decode import generate, guide
from editar.training.losses import Objective


def files(golden: Golden) -> list[str]:
    always = ["config.json", "keys.json", "state_dict.pt", "inputs.pt", "train_forward.pt", "dropout_table.json"]
    always += ["grads.pt", "train_steps.pt", "freqs_cis.npy", "freqs_cis_full_size_rows.npz"]
    if not (golden.folder / "config.json").is_file():
        return always
    # Grouped-query shapes: the official cache cannot hold them, so no decoding is stored.
    config = golden.json("config.json")
    grouped = config.get("n_kv_head") not in (None, config["n_head"])
    return always if grouped else [*always, "decode.pt", "greedy.json"]


def run(golden: Golden) -> Iterator[Check | Skipped]:
    config, state, inputs = golden.json("config.json"), golden.tensors("state_dict.pt"), golden.tensors("inputs.pt")
    cfg = gpt_config(config, state)
    model = build(golden, cfg, state)
    yield from check_names(golden, model)
    yield from check_positions(golden, cfg)
    yield from check_forward(golden, cfg, state, inputs)
    yield from gpt_training.check_drops(golden)
    yield from gpt_training.check_gradients(golden, build(golden, cfg, state), inputs)
    yield from gpt_training.check_steps(golden, build(golden, cfg, state), inputs)
    for name, check in (("decode.pt", check_decode), ("greedy.json", check_greedy)):
        if (golden.folder / name).is_file():
            yield from check(golden, model, inputs)
        else:
            yield Skipped(f"{golden.folder.name}: {name}", "not stored for grouped-query attention")


def gpt_config(stored: Entries, state: dict[str, torch.Tensor]) -> GPTConfig:
    """Official argument names -> ours. Shapes that are no argument there are read off the weights."""
    same = {key: stored[key] for key in ("dim", "n_layer", "n_head", "vocab_size")}
    optional = ("n_kv_head", "ffn_dim_multiplier", "multiple_of", "norm_eps", "initializer_range")
    same |= {key: stored[key] for key in optional if key in stored}
    dropouts = ("token_dropout", "attn_dropout", "resid_dropout", "ffn_dropout")
    cfg = GPTConfig(
        grid=math.isqrt(stored["block_size"]),
        text_tokens=stored["cls_token_num"],
        text_dim=stored["caption_dim"],
        null_text_rows=state["cls_embedding.uncond_embedding"].shape[0],
        teacher_dim=state["alignment.weight"].shape[0] if "alignment.weight" in state else None,
        **same,
        **{name: stored.get(f"{name}_p", 0.0) for name in dropouts},
    )
    cfg.rope.base = float(stored.get("rope_base", cfg.rope.base))
    return cfg


def build(golden: Golden, cfg: GPTConfig, state: dict[str, torch.Tensor]) -> GPT:
    model = GPT(cfg)
    load_state(model, state, f"{golden.folder.name}: GPT weights")
    return model.to(golden.device, golden.dtype).eval()


def check_names(golden: Golden, model: GPT) -> Iterator[Check]:
    stored = golden.json("keys.json")
    shapes = {entry["name"]: list(entry["shape"]) for entry in stored["state_dict_keys"]}
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    yield golden.same("state dict names", sorted(ours), sorted(shapes))
    yield golden.same("state dict shapes", {n: s for n, s in ours.items() if shapes.get(n) != s}, {})
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        yield golden.same(f"{kind} names", sorted(name for name, _ in named), sorted(stored[f"named_{kind}s"]))
    if "num_parameters" in stored:
        yield golden.same("parameter count", sum(p.numel() for p in model.parameters()), stored["num_parameters"])


def check_positions(golden: Golden, cfg: GPTConfig) -> Iterator[Check]:
    """The rotary table in float32, at this set's size and, by rows, at full size."""
    yield golden.scaled("rotary table", rope_table(cfg), golden.array("freqs_cis.npy"), 1e-5)
    full = golden.array("freqs_cis_full_size_rows.npz")
    positions, pairs, _ = (int(n) for n in full["full_shape"])
    rows, values = torch.from_numpy(full["rows"]), torch.from_numpy(full["values"])
    is_text = values.eq(0).flatten(1).all(1)
    if not is_text.any():
        raise GoldenError(f"{golden.folder.name}/freqs_cis_full_size_rows.npz: no text row among the stored rows")
    # The file holds no grid size, but text, the all-zero rows, starts at the square number N.
    grid = math.isqrt(int(rows[is_text].min()))
    big = GPTConfig(dim=2 * pairs, n_head=1, grid=grid, text_tokens=positions - 2 * grid**2, rope=cfg.rope)
    table = rope_table(big)
    yield golden.same("rotary table shape, full size", list(table.shape), full["full_shape"].tolist())
    if len(table) == positions:
        yield golden.scaled("rotary table rows, full size", table[rows], values, 1e-5)


def check_forward(
    golden: Golden, cfg: GPTConfig, state: dict[str, torch.Tensor], inputs: Entries
) -> Iterator[Check | Skipped]:
    model = build(golden, cfg, state).train()
    source, text, target = prompts(golden, inputs)
    cases = golden.tensors("train_forward.pt")
    for name, stored in cases.items():
        if "rand" not in stored:
            continue
        given = (source, text, target, *drops(golden, stored["rand"]))
        with torch.no_grad():
            output, scores = model(*given), Objective(model, LossConfig())(*given)
        title = f"forward {name}"
        yield golden.scaled(f"{title} logits", output.logits, stored["logits"])
        yield golden.scaled(f"{title} loss", scores.terms["token"], stored["loss"])
        nll = F.cross_entropy(output.logits.transpose(1, 2), target, reduction="none")  # (B, N)
        yield golden.scaled(f"{title} loss per token", nll, stored["per_token_nll"])
        if "valid" in cases and name == "none":
            weights = cases["valid"]["valid"].to(nll)[:, None].expand_as(nll)
            weighted = (nll * weights).sum() / weights.sum().clamp(min=1)
            yield golden.scaled("forward valid loss", weighted, cases["valid"]["loss"])
        yield from check_features(golden, cfg, state, inputs, title, stored)


def check_features(
    golden: Golden, cfg: GPTConfig, state: dict[str, torch.Tensor], inputs: Entries, title: str, stored: Entries
) -> Iterator[Check | Skipped]:
    """Distillation features; large ones are stored as every k-th channel and the sum of all."""
    for teacher in sorted({key.split("_")[1] for key in stored if key.startswith("features_")}):
        shape = stored.get(f"features_{teacher}_shape")
        grid = None if shape is None else math.isqrt(int(shape[1]))
        model = build(golden, replace(cfg, teacher_grid=grid), state).train()
        with torch.no_grad():
            features = model(*prompts(golden, inputs), *drops(golden, stored["rand"])).features  # (B, T, C)
        for key in sorted(key for key in stored if key.split("_")[:2] == ["features", teacher]):
            if key.endswith("_shape"):
                yield golden.same(f"{title} {key}", list(features.shape), stored[key].tolist())
                continue
            stride = re.fullmatch(r"features_\w+_ch(\d+)", key)
            part = features[..., :: int(stride[1])] if stride else features
            part = features.double().sum() if key.endswith("_sum") else part
            yield golden.scaled(f"{title} {key}", part, stored[key])


class Replay(NamedTuple):
    """Cached decoding in which stored tokens are fed, whatever the model would have chosen."""

    logits: torch.Tensor  # (B, M, V) of the M fed tokens, float32
    prefix: torch.Tensor  # (B, N + L, V) of every prefix position
    cache: KVCache


@torch.no_grad()
def replay(
    golden: Golden, model: GPT, inputs: Entries, tokens: torch.Tensor, drop_image: torch.Tensor, drop_text: bool
) -> Replay:
    """Prefill, then feed `tokens` (B, M) one by one; drop_image (B,) bool."""
    source, text, _ = prompts(golden, inputs)
    cache = KVCache(model.cfg, len(source), golden.device, golden.dtype)
    hidden: list[torch.Tensor] = []
    hook = model.layers[-1].register_forward_hook(lambda module, args, result: hidden.append(result))
    logits = [model.prefill(source, text, cache, drop_image, torch.full_like(drop_image, drop_text))]
    hook.remove()
    prefix = model.output(model.norm(hidden[0])).float()
    logits += [model.decode(tokens[:, i], i, cache) for i in range(tokens.shape[1] - 1)]
    return Replay(torch.stack(logits, dim=1), prefix, cache)


def check_decode(golden: Golden, model: GPT, inputs: Entries) -> Iterator[Check]:
    stored = golden.tensors("decode.pt")
    _, _, target = prompts(golden, inputs)
    for image in (1, 0):
        drop_image = torch.full((len(target),), image == 0, device=golden.device)
        for text in ("cond", "uncond"):
            result = replay(golden, model, inputs, target, drop_image, text == "uncond")
            yield golden.scaled(f"decode img{image} {text}", result.logits, stored[f"img{image}_{text}"])
            if image == 1:
                yield golden.scaled(f"prefill all logits {text}", result.prefix, stored[f"prefill_all_logits_{text}"])
            elif text == "cond":
                yield from check_cache(golden, model.cfg, result.cache, stored["k_cache_layer0_img0_sample0"])


def check_cache(golden: Golden, cfg: GPTConfig, cache: KVCache, stored: torch.Tensor) -> Iterator[Check]:
    """Keys of layer 0, sample 0, (H, S, hd); the official cache is padded to a multiple of 8."""
    keys = cache.keys[0, 0]
    yield golden.scaled("key cache, layer 0", keys, stored[:, : cfg.sequence_tokens])
    text = keys[:, cfg.image_tokens : cfg.prefix_tokens]
    yield golden.identical("key cache, text rows zero", text, torch.zeros_like(text))
    yield golden.identical("key cache, text rows as stored", text, stored[:, cfg.image_tokens : cfg.prefix_tokens])


def check_greedy(golden: Golden, model: GPT, inputs: Entries) -> Iterator[Check]:
    stored = golden.json("greedy.json")
    for case in stored["cases"]:
        settings = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")
        cfg = SamplingConfig(**{key: case[key] for key in settings}, greedy=True)
        tokens, keep_image = torch.tensor(case["tokens"]), torch.tensor(case["input_mode"])
        yield from compare_greedy(golden, f"greedy {case['name']}", model, inputs, tokens, cfg, keep_image)


def compare_greedy(
    golden: Golden,
    title: str,
    model: GPT,
    inputs: Entries,
    tokens: torch.Tensor,
    cfg: SamplingConfig,
    keep_image: torch.Tensor,
) -> Iterator[Check]:
    """Stored tokens (B, M) against ours; keep_image (B,) is 0 where the null image is read.

    In bfloat16 one token that flips between near-equal logits changes all after it, so there only
    the choices along the stored sequence are compared.
    """
    source, text, _ = prompts(golden, inputs)
    drop_image = (keep_image == 0).to(golden.device)
    if golden.dtype == torch.float32:
        ours = generate(model, source, text, cfg, drop_image=drop_image)[:, : tokens.shape[1]]
        yield golden.identical(title, ours, tokens)
    fed = tokens.long().to(golden.device)
    logits = replay(golden, model, inputs, fed, drop_image, False).logits
    if cfg.cfg_scale > 1:
        mixed = guide(logits, replay(golden, model, inputs, fed, drop_image, True).logits, cfg.cfg_scale)
        last = len(tokens[0]) if cfg.cfg_interval < 0 else cfg.cfg_interval + 2
        logits = torch.cat([mixed[:, :last], logits[:, last:]], dim=1)
    yield golden.identical(f"{title}, each choice", logits.argmax(-1), tokens, golden.tolerance.tokens)
