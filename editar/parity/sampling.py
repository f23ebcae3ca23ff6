"""Guidance, filters and probabilities on stored logits. Always float32: the product's logits are."""

from __future__ import annotations

from collections.abc import Iterator

from editar.config import SamplingConfig
from editar.parity.checks import Check, Entries, Golden
from editar.sampling.decode import filter_logits, guide, probabilities


def files(golden: Golden) -> list[str]:
    return ["index.json", "sampling.pt"]


def run(golden: Golden) -> Iterator[Check]:
    index, stored = golden.json("index.json"), golden.tensors("sampling.pt")
    for case in index["filter_cases"]:
        yield from check_filter(golden, case, stored)
    for case in index["sample_cases"]:
        yield from check_sample(golden, case, stored)
    yield from check_guidance(golden, stored)


def check_filter(golden: Golden, case: Entries, stored: Entries) -> Iterator[Check]:
    name = f"filter {case['name']}"
    logits = stored[case["input"]].to(golden.device)
    before = logits.clone()
    kept = filter_logits(logits, case["top_k"], case["top_p"], case.get("min_tokens_to_keep", 1))
    yield golden.identical(name, kept, stored[case["name"]])
    yield golden.identical(f"{name} kept per row", kept.isfinite().sum(-1), case["kept_per_row"])
    yield golden.identical(f"{name} leaves its input alone", logits, before)


def check_sample(golden: Golden, case: Entries, stored: Entries) -> Iterator[Check]:
    """Logits (B, s, V) -> probabilities of the last position (B, V) and their best token (B, 1)."""
    name = case["name"]
    cfg = SamplingConfig(temperature=case["temperature"], top_k=case["top_k"], top_p=case["top_p"])
    probs = probabilities(stored[f"{name}_logits"][:, -1].to(golden.device), cfg)
    yield golden.scaled(f"probabilities {name}", probs, stored[f"{name}_probs"], 1e-5)
    if not case["sample_logits"]:
        yield golden.identical(f"greedy token {name}", probs.argmax(-1, keepdim=True), stored[f"{name}_idx"])


def check_guidance(golden: Golden, stored: Entries) -> Iterator[Check]:
    cond, uncond = stored["cfg_cond"].to(golden.device), stored["cfg_uncond"].to(golden.device)
    for key in sorted(set(stored) - {"cfg_cond", "cfg_uncond"}):
        if key.startswith("cfg_"):
            scale = float(key.removeprefix("cfg_"))
            yield golden.scaled(f"guidance scale {scale:g}", guide(cond, uncond, scale), stored[key], 1e-5)
