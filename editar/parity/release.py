"""Checkpoints as the official projects write them: EditAR's release, LlamaGen's text-to-image GPT and its VQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from editar.config import GPTConfig, LossConfig, OptimConfig, SamplingConfig
from editar.models.gpt import GPT
from editar.parity import gpt, vq
from editar.parity.checks import Check, Entries, Golden, Skipped
from editar.parity.gpt_training import drops, prompts
from editar.training.losses import Objective
from editar.training.optim import make_optimizers
from editar.weights.read import read_file

LOAD_KEY = "load_into_edit_model_distill_"


def files(golden: Golden) -> list[str]:
    return ["config.json", "keys.json", "expected.pt", "editar_release_tiny.pt", "t2i_tiny.pt", "vq_tiny.pt"]


def run(golden: Golden) -> Iterator[Check | Skipped]:
    config, keys, stored = golden.json("config.json"), golden.json("keys.json"), golden.tensors("expected.pt")
    release = load_official(golden, "editar_release_tiny.pt")
    cfg = gpt.gpt_config(config["gpt"], release["model"])
    model = gpt.build(golden, cfg, release["model"])
    yield from check_release(golden, release, cfg, config, keys["editar_release"])
    yield from check_images(golden, config, keys, stored)
    yield from compare_forward(golden, "release, nothing dropped", model, stored, "train_{}_no_drop", None)
    yield from compare_forward(golden, "release, drops", model, stored, "train_{}_drop", stored["train_rand_drop"])
    yield from check_greedy(golden, model, stored)
    yield from check_text_to_image(golden, cfg, keys, stored)


def load_official(golden: Golden, name: str) -> Entries:
    """A checkpoint of the official training scripts; its parsed arguments are the only class let in."""
    return Entries(read_file(golden.path(name)), f"{golden.folder.name}/{name}")


def check_release(golden: Golden, release: Entries, cfg: GPTConfig, config: Entries, keys: Entries) -> Iterator[Check]:
    """What lies in the file, and that its optimiser state fits ours."""
    yield golden.same("release entries", sorted(release), sorted(keys["top_level_keys"]))
    yield golden.same("release weights", sorted(release["model"]), sorted(keys["model_keys"]))
    yield golden.same("release arguments", dict(vars(release["args"])), dict(keys["args"]))
    yield golden.same("release steps", release["steps"], config["steps"])
    groups = keys["optimizer_param_groups"]
    model = GPT(cfg)
    optimizer = make_optimizers(model, OptimConfig(lr=groups[0]["lr"], weight_decay=groups[0]["weight_decay"]))[0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        title, ours = f"release optimiser group {number}", [names[id(parameter)] for parameter in group["params"]]
        yield golden.same(title, ours, keys[f"optimizer_group{number}_names"])
        yield golden.same(f"{title} decay", group["weight_decay"], groups[number]["weight_decay"])
    optimizer.load_state_dict(release["optimizer"])
    wrong = [names[id(p)] for p, state in optimizer.state.items() if state["exp_avg"].shape != p.shape]
    yield golden.same("release optimiser state misfits", wrong, [])


def check_images(golden: Golden, config: Entries, keys: Entries, stored: Entries) -> Iterator[Check]:
    """Pictures -> codes, and greedy codes -> pictures, with the checkpoint's tokenizer."""
    state = load_official(golden, "vq_tiny.pt")["model"]
    yield golden.same("tokenizer weights", len(state), keys["vq_tiny"]["num_keys"])
    model = vq.build(golden, vq.tokenizer_config(config["vq"]), state)
    yield from vq.check_pictures(golden, config["vq"]["image_size"], stored["input_images"])
    codes = model.encode(golden.put(stored["input_images"]))
    yield golden.identical("codes of the images", codes, stored["input_img_indices"], golden.tolerance.codes)
    for key in sorted(key for key in stored if key.startswith("decoded_image_")):
        tokens = stored[f"greedy_tokens_{key.removeprefix('decoded_image_')}"].long().to(golden.device)
        yield golden.scaled(key, model.decode(tokens), stored[key])


@torch.no_grad()
def compare_forward(
    golden: Golden, title: str, model: GPT, stored: Entries, key: str, rand: torch.Tensor | None
) -> list[Check]:
    """Teacher forcing against stored `key` with logits, loss and, where there are some, features."""
    masks = (None, None) if rand is None else drops(golden, rand)
    given = (*prompts(golden, stored), *masks)
    output = model.train()(*given)
    loss = Objective(model, LossConfig())(*given).terms["token"]
    model.eval()
    checks = [
        golden.scaled(f"{title} logits", output.logits, stored[key.format("logits")]),
        golden.scaled(f"{title} loss", loss, stored[key.format("loss")]),
    ]
    if key == "train_{}_no_drop" and output.features is not None and "features_dinov2" in stored:
        checks.append(golden.scaled(f"{title} features", output.features, stored["features_dinov2"]))
    return checks


def check_greedy(golden: Golden, model: GPT, stored: Entries) -> Iterator[Check]:
    for key in sorted(key for key in stored if key.startswith("greedy_tokens_cfg")):
        cfg = SamplingConfig(cfg_scale=float(key.removeprefix("greedy_tokens_cfg")), top_k=0, greedy=True)
        keep_image = torch.ones(len(stored[key]))
        yield from gpt.compare_greedy(golden, f"release {key}", model, stored, stored[key], cfg, keep_image)


def check_text_to_image(golden: Golden, cfg: GPTConfig, keys: Entries, stored: Entries) -> Iterator[Check]:
    state = load_official(golden, "t2i_tiny.pt")["model"]
    yield golden.same("t2i weights", sorted(state), sorted(keys["t2i_state_dict_keys"]))
    for key in sorted(key for key in keys if key.startswith(LOAD_KEY)):
        teacher = key.removeprefix(LOAD_KEY)
        model = GPT(replace(cfg, teacher_dim=None if teacher == "None" else cfg.teacher_dim))
        result = model.load_state_dict(state, strict=False)
        own, expected, title = model.state_dict(), keys[key], f"t2i into edit model (teacher {teacher})"
        yield golden.same(f"{title} missing", sorted(result.missing_keys), sorted(expected["missing_keys"]))
        yield golden.same(f"{title} unexpected", sorted(result.unexpected_keys), sorted(expected["unexpected_keys"]))
        taken = [name for name in expected["taken_from_t2i"] if torch.equal(own[name], state[name])]
        yield golden.same(f"{title} taken over", taken, list(expected["taken_from_t2i"]))
    model = model.to(golden.device, golden.dtype)
    yield from compare_forward(golden, "edit model after t2i", model, stored, "t2i_init_train_{}_no_drop", None)
    _, text, target = prompts(golden, stored)
    logits = text_to_image_logits(model, text, target)
    yield golden.scaled("t2i itself logits", logits, stored["upstream_t2i_train_logits"])
    loss = F.cross_entropy(logits.transpose(1, 2), target)
    yield golden.scaled("t2i itself loss", loss, stored["upstream_t2i_train_loss"])


@torch.no_grad()
def text_to_image_logits(model: GPT, text: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """LlamaGen's text-to-image model from our parts: [text | image] -> (B, N, V) float32.

    Its text rows are zero and its image sits where our source image does, so its rotary table is
    rows of ours in another order.
    """
    n, length = model.cfg.image_tokens, model.cfg.text_tokens
    ours = model.rope(target.device)
    rope = torch.cat([ours[n : n + length], ours[: n - 1]])  # (L + N - 1, hd/2, 2)
    caption = model.cls_embedding(text, None)  # (B, L, D)
    x = torch.cat([caption, model.tok_embeddings(target[:, :-1])], dim=1)
    for layer in model.layers:
        x = layer(x, rope)
    return model.output(model.norm(x[:, length - 1 :])).float()
