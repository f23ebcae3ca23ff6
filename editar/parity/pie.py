"""PIE-Bench: masks, captions and every metric the official evaluator gives for a few stored results.

Both backbones are random numbers by a stored recipe. Always float32, whatever dtype was asked; the
metrics on the device under test.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from editar.evaluation.pie_bench.dataset import PieItem, load_items, load_result, load_source, plain_caption
from editar.evaluation.pie_bench.metrics import COLUMNS, background, grey_levels, to_unit
from editar.generation.result_folder import ResultFolder
from editar.metrics.dino_structure import StructureDistance, dino_vitb8, self_similarity
from editar.metrics.lpips_clip import Lpips
from editar.parity.checks import Check, Entries, Golden, Skipped
from editar.runtime.files import load_state
from editar.tables.statistics import mean_of

# Largest relative error of each metric; random backbones amplify rounding.
TOLERANCE = {"psnr": 1e-4, "mse": 1e-4, "ssim": 1e-4, "lpips": 1e-3, "structure_distance": 2e-3}
SCALE = {column.official.removesuffix("_unedit_part"): column.scale for column in COLUMNS}
REGIONS = ("_unedit_part", "_edit_part", "")


def files(golden: Golden) -> list[str]:
    stored = ["decoded_masks.npz", "expected.json", "backbone_recipes.json", "intermediates.pt"]
    return ["data/mapping_file.json", *stored]


def run(golden: Golden) -> Iterator[Check | Skipped]:
    stored, pictures = golden.json("expected.json"), Pictures(golden)
    yield from check_files(golden, pictures, stored)
    raw = {id: stored["per_image"][id]["metrics_raw"] for id in pictures.items}
    for name in stored["metrics"]:
        region = next(region for region in REGIONS if name.endswith(region))
        metric = name.removesuffix(region)
        # The reference writes undefined values as the text "nan"; so does float read them.
        expected = {id: float(values[name]) for id, values in raw.items() if name in values}
        found = [pictures.value(id, metric, region) for id in expected]
        yield golden.compare("elements", name, found, list(expected.values()), TOLERANCE[metric])
        if name in stored["aggregate"]:
            yield from check_aggregate(golden, name, metric, found, stored["aggregate"][name])
    scored = [id for id, values in raw.items() if "structure_distance" in values]
    yield from check_intermediates(golden, pictures, scored)


class Pictures:
    """The stored benchmark and the results for it, by picture id; our values, each computed once."""

    def __init__(self, golden: Golden) -> None:
        self.device = golden.device
        output = ResultFolder(golden.folder / "output" / "tiny-editor")
        self.items: dict[str, PieItem] = {item.id: item for item in load_items(golden.folder / "data")}
        self.sources = {id: load_source(golden.folder / "data", item) for id, item in self.items.items()}
        self.results = {id: load_result(output.path(id, item.path)) for id, item in self.items.items()}
        self.masks = {id: item.mask() for id, item in self.items.items()}
        self.recipes = golden.json("backbone_recipes.json")
        self.computed: dict[tuple[str, str], dict[str, float]] = {}
        self.known_keys: dict[tuple[str, str, str], torch.Tensor] = {}

    def keep(self, id: str, region: str) -> np.ndarray:
        """(H, W) bool: the pixels of a region."""
        mask = self.masks[id]
        return {"": np.ones_like(mask), "_unedit_part": ~mask, "_edit_part": mask}[region]

    @cached_property
    def lpips(self) -> Lpips:
        return Lpips(fill(self.recipes["lpips_backbone"]), self.device)

    @cached_property
    def structure(self) -> StructureDistance:
        network = dino_vitb8()
        load_state(network, fill(self.recipes["structure_backbone"]), "backbone_recipes.json: structure_backbone")
        return StructureDistance(network, self.device)

    def value(self, id: str, metric: str, region: str) -> float:
        keep = self.keep(id, region)
        if not keep.any():
            return math.nan
        if metric == "structure_distance":
            a, b = (self_similarity(self.keys(id, which, region)) for which in ("source", "result"))
            return F.mse_loss(a, b).item()
        if (id, region) not in self.computed:
            a, b = (to_unit(p[id][None], self.device) for p in (self.sources, self.results))
            values = background(a, b, torch.from_numpy(keep)[None].to(self.device), self.lpips)
            self.computed[id, region] = {name: value.item() for name, value in values.items()}
        return self.computed[id, region][metric]

    @torch.no_grad()
    def keys(self, id: str, which: str, region: str = "") -> torch.Tensor:
        """Last-block keys (tokens, width) of one picture."""
        if (id, which, region) not in self.known_keys:
            picture = (self.sources if which == "source" else self.results)[id]
            masked = picture * self.keep(id, region)[..., None].astype(np.uint8)
            self.known_keys[id, which, region] = self.structure.keys(grey_levels(masked[None]))[0]
        return self.known_keys[id, which, region]


def check_files(golden: Golden, pictures: Pictures, stored: Entries) -> Iterator[Check]:
    masks = golden.array("decoded_masks.npz")
    for id, item in pictures.items.items():
        entry = stored["per_image"][id]
        source, result, mask = pictures.sources[id], pictures.results[id], pictures.masks[id]
        yield golden.identical(f"{id} mask", mask, masks[id])
        # Decoded JPEGs; another decoder may round differently.
        means, expected = [source.mean(), result.mean()], [entry["source_pixel_mean"], entry["target_pixel_mean"]]
        yield golden.absolute(f"{id} pictures, mean grey level", means, expected, 0.01)
        edited = result * mask[..., None].astype(np.uint8)
        for name, picture, caption in (
            ("clip_similarity_source_image", source, item.source_caption),
            ("clip_similarity_target_image", result, item.target_caption),
            ("clip_similarity_target_image_edit_part", edited, item.target_caption),
        ):
            given = entry["clip_inputs"][name]
            yield golden.same(f"{id} {name} caption", plain_caption(caption), given["prompt"])
            yield golden.absolute(f"{id} {name} picture", picture.mean(), given["uint8_mean"], 0.01)


def fill(recipe: Entries) -> dict[str, torch.Tensor]:
    """Weights from a recipe: numpy's legacy generator, which every version draws alike."""
    weights = {}
    for row in recipe["parameters"]:
        drawn = np.random.RandomState(recipe["seed"] + row["index"]).standard_normal(row["shape"])
        weights[row["name"]] = torch.from_numpy(np.float32(row["offset"] + row["scale"] * drawn))
    return weights


def check_aggregate(golden: Golden, name: str, metric: str, found: list[float], stored: Entries) -> Iterator[Check]:
    """Mean over the defined pictures, in raw and in the paper's units."""
    mean = mean_of(found)
    yield golden.same(f"{name} defined pictures", mean.count, stored["count"])
    means, expected = [mean.mean, mean.mean * SCALE[metric]], [stored["mean_raw"], stored["mean_paper_units"]]
    yield golden.compare("elements", f"{name} mean, raw and paper units", means, expected, TOLERANCE[metric])


@torch.no_grad()
def check_intermediates(golden: Golden, pictures: Pictures, scored: Collection[str]) -> Iterator[Check]:
    """`scored`: ids whose structure distance is stored."""
    stored = golden.tensors("intermediates.pt")
    id, tokens = stored["sample_id"], stored["token_indices"]
    source, result = (grey_levels(p[id][None]) for p in (pictures.sources, pictures.results))
    prepared = pictures.structure.preprocess(source)[0]
    stride = prepared.shape[-1] // stored["resized_normalized_input_stride16"].shape[-1]
    limit = TOLERANCE["structure_distance"]
    yield golden.scaled("DINO input", prepared[:, ::stride, ::stride], stored["resized_normalized_input_stride16"])
    yield golden.scaled("DINO input mean", prepared.double().mean(), stored["resized_normalized_mean"])
    keys = pictures.keys(id, "source").cpu()
    similarity, part = self_similarity(keys), stored["keys_layer11_head0_tokens_stride49_ch8"]
    yield golden.scaled("DINO keys", keys[tokens][:, : part.shape[1]], part, limit)
    yield golden.scaled("similarity", similarity[tokens][:, tokens], stored["key_self_similarity_stride49"], limit)
    yield golden.scaled("similarity mean", similarity.double().mean(), stored["key_self_similarity_mean"], limit)
    value = pictures.value(id, "structure_distance", "")
    yield golden.compare("elements", "with antialias", value, stored["structure_distance_with_antialias"], limit)
    if "structure_distance_without_antialias" in stored:  # tests/golden leaves it out: two more passes
        plain = StructureDistance(pictures.structure.network, golden.device, antialias=False)
        found, expected = plain(source, result)[0], stored["structure_distance_without_antialias"]
        yield golden.compare("elements", "without antialias", found, expected, limit)
    for id, exact in zip(pictures.items, stored["structure_distance_backbone_in_float64"], strict=False):
        if id in scored:
            value = pictures.value(id, "structure_distance", "")
            yield golden.compare("elements", f"{id} structure, float64 backbone", value, exact, limit)
    yield from check_lpips_layers(golden, pictures, stored)


def check_lpips_layers(golden: Golden, pictures: Pictures, stored: Entries) -> Iterator[Check]:
    id = stored["sample_id"]
    a, b = (to_unit(p[id][None], golden.device) * 2 - 1 for p in (pictures.sources, pictures.results))
    total, layers = pictures.lpips.network(a, b, retPerLayer=True)
    limit = TOLERANCE["lpips"]
    yield golden.compare("elements", "LPIPS layers", torch.cat(layers).flatten(), stored["lpips_per_layer"], limit)
    yield golden.compare("elements", "LPIPS total", total.flatten(), stored["lpips_total"], limit)
