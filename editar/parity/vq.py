"""The VQ tokenizer: latents, codes, pictures and the losses of its training mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from editar.config import TokenizerConfig
from editar.images import load_image, preprocess, to_uint8
from editar.models.vq import VQModel
from editar.parity.checks import Check, Entries, Golden, Skipped
from editar.runtime.files import load_state

# Which of the stored images (B, 3, H, W) a training-mode call saw, by the words of train_losses.json.
BATCHES = {"both images": slice(None), "second image only": slice(1, 2)}


def files(golden: Golden) -> list[str]:
    return ["config.json", "state_dict.pt", "outputs.pt", "train_losses.json"]


def run(golden: Golden) -> Iterator[Check | Skipped]:
    config, state, stored = golden.json("config.json"), golden.tensors("state_dict.pt"), golden.tensors("outputs.pt")
    yield from check_pictures(golden, config["image_size"], stored["images"])
    cfg = tokenizer_config(config)
    model = build(golden, cfg, state)
    yield from check_encoding(golden, model, stored)
    yield from check_decoding(golden, model, stored)
    yield from check_without_l2(golden, build(golden, replace(cfg, codebook_l2_norm=False), state), stored)
    losses = golden.json("train_losses.json")
    own = ("codebook_l2_norm", "entropy_loss_ratio", "commit_loss_beta")
    for name, calls in losses.items():
        if isinstance(calls, Entries):
            model = build(golden, replace(cfg, **{key: calls[key] for key in own}), state).train()
            yield from check_training_mode(golden, f"losses {name}", model, calls, stored["images"])


def tokenizer_config(stored: Entries) -> TokenizerConfig:
    """Official argument names -> ours; what the file leaves out keeps the official default."""
    same = ("ch", "encoder_ch_mult", "decoder_ch_mult", "z_channels", "codebook_size")
    optional = ("num_res_blocks", "norm_groups", "codebook_l2_norm", "commit_loss_beta", "entropy_loss_ratio")
    values = {key: stored[key] for key in same} | {key: stored[key] for key in optional if key in stored}
    cfg = TokenizerConfig(**values, codebook_dim=stored["codebook_embed_dim"])
    return replace(cfg, dropout=stored.get("dropout_p", cfg.dropout))


def build(golden: Golden, cfg: TokenizerConfig, state: dict[str, torch.Tensor]) -> VQModel:
    model = VQModel(cfg)
    load_state(model, state, f"{golden.folder.name}: tokenizer weights")
    model = model.to(golden.device, golden.dtype).eval().requires_grad_(False)
    # A history of indices, not a weight: bfloat16 could not hold indices above 256.
    model.quantize.codebook_used = state["quantize.codebook_used"].clone().to(golden.device)
    return model


def check_pictures(golden: Golden, size: int, images: torch.Tensor) -> Iterator[Check]:
    """The PNG files, where they are kept, against the stored input tensor (B, 3, size, size)."""
    for number, image in enumerate(images):
        name = f"image_{number}.png"
        if (golden.folder / name).is_file():
            pixels = preprocess(load_image(golden.path(name)), size)
            yield golden.absolute(f"{name} tensor", pixels, image, golden.tolerance.pixels)


def check_encoding(golden: Golden, model: VQModel, stored: Entries) -> Iterator[Check]:
    images = golden.put(stored["images"])
    yield golden.scaled("encoder output", model.encoder(images), stored["encoder_out"])
    yield golden.scaled("latents", model.latents(images), stored["latent_before_quant"])
    codes = model.encode(images)  # (B, h*w)
    yield golden.identical("codes", codes, stored["indices_reshaped"], golden.tolerance.codes)
    yield golden.identical("codes, flat", codes.flatten(), stored["indices"], golden.tolerance.codes)
    # From the stored latents: in bfloat16 one flipped code would hide every other difference.
    quantised, _, picked = model.quantize(golden.put(stored["latent_before_quant"]))
    yield golden.identical("codes of stored latents", picked.flatten(), stored["indices"], golden.tolerance.codes)
    if golden.dtype == torch.float32:
        yield golden.scaled("straight-through vectors", quantised, stored["quant"])


def check_decoding(golden: Golden, model: VQModel, stored: Entries) -> Iterator[Check]:
    codes = stored["indices_reshaped"].to(golden.device)  # (B, h*w)
    images = model.decode(codes)
    yield golden.scaled("decoded picture", images, stored["decode_code"])
    vectors = stored["codebook_entry_channel_first"]
    entries = model.quantize.lookup(codes.view(len(codes), *vectors.shape[2:]))  # (B, e, h, w)
    yield golden.scaled("codebook entries, channels first", entries, vectors)
    flat = entries.permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, e)
    yield golden.scaled("codebook entries, flat", flat, stored["codebook_entry_no_shape"])
    drawn = model.decode(stored["random_indices"].view(len(codes), -1).to(golden.device))
    yield golden.scaled("decoded picture of random codes", drawn, stored["random_indices_decode"])
    yield golden.identical("uint8 of the stored picture", to_uint8(stored["decode_code"]), stored["uint8"])
    grey = to_uint8(images)
    yield golden.identical("uint8 of our picture", grey, stored["uint8"], golden.tolerance.uint8)
    levels = 1.0 + golden.tolerance.forward * 255
    yield golden.absolute("uint8 of our picture, grey levels", grey, stored["uint8"], levels)


def check_without_l2(golden: Golden, model: VQModel, stored: Entries) -> Iterator[Check]:
    codes = model.encode(golden.put(stored["images"]))
    yield golden.identical("no l2: codes", codes.flatten(), stored["no_l2_indices"], golden.tolerance.codes)
    if golden.dtype == torch.float32:
        quantised, _, _ = model.quantize(golden.put(stored["latent_before_quant"]))
        yield golden.scaled("no l2: straight-through vectors", quantised, stored["no_l2_quant"])
    images = model.decode(stored["no_l2_indices"].view_as(codes).to(golden.device))
    yield golden.scaled("no l2: decoded picture", images, stored["no_l2_decode_code"])


def check_training_mode(
    golden: Golden, name: str, model: VQModel, stored: Entries, images: torch.Tensor
) -> Iterator[Check]:
    """Quantiser losses of consecutive calls; the usage history carries over from call to call."""
    for number, call in enumerate(stored["consecutive_train_mode_calls"]):
        title = f"{name}, call {number}"
        if call["batch"] not in BATCHES:
            yield golden.same(f"{title} batch", call["batch"], f"one of {', '.join(BATCHES)}")
            return
        with torch.no_grad():
            _, losses, codes = model(golden.put(images[BATCHES[call["batch"]]]))
        yield golden.scaled(f"{title} codebook", losses.codebook, call["vq_loss"])
        yield golden.scaled(f"{title} commit", losses.commit, call["commit_loss"])
        yield golden.scaled(f"{title} entropy", losses.entropy, call["entropy_loss"])
        yield golden.scaled(f"{title} usage", losses.usage, call["codebook_usage"])
        yield golden.same(f"{title} new codes", codes.numel(), call["num_new_indices"])
    tail = stored["codebook_used_tail"]
    recent = model.quantize.codebook_used[-len(tail) :]
    yield golden.identical(f"{name}, end of the history", recent, tail, golden.tolerance.codes)
