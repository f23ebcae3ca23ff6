"""Other systems of the paper's tables, one file each in `configs/baseline/`."""

from __future__ import annotations

from dataclasses import dataclass, field

from editar.config.fields import setting
from editar.errors import ConfigError


@dataclass
class BaselineConfig:
    """A system to compare with: run here through diffusers, or known by a folder of its pictures.

    method            as in editar/tables/paper_rows.yaml
    kind              `runner` (run here), `folder` (its pictures are made elsewhere and scored here), `none`
    how               where its code, weights or pictures come from
    benchmarks        what it can be run or scored on
    pipeline          of a runner: `instruct_pix2pix`, `t2i_adapter` or `controlnet`
    base_model        hub id or folder in diffusers' format
    condition_models  benchmark -> hub id or folder of the adapter or ControlNet, `:SUBFOLDER` if it lies deeper
    scheduler         `euler_ancestral`, `unipc`, or `own`, the base model's
    precision         `fp16` or `fp32`; a CPU always takes fp32
    image_guidance    0 = has none

    Of a `folder` the settings are those of the source it names; 0 or empty = the source states none.
    """

    method: str = ""
    kind: str = setting("none", choices=("none", "folder", "runner"))
    how: str = ""
    benchmarks: list[str] = field(default_factory=list)
    pipeline: str = setting("", choices=("", "instruct_pix2pix", "t2i_adapter", "controlnet"))
    base_model: str = ""
    condition_models: dict[str, str] = field(default_factory=dict)
    size: int = setting(512, least=1)
    batch_size: int = setting(4, least=1)
    steps: int = setting(0, least=0)
    guidance: float = setting(0.0, least=0)
    image_guidance: float = setting(0.0, least=0)
    scheduler: str = setting("own", choices=("own", "euler_ancestral", "unipc"))
    negative_prompt: str = ""
    precision: str = setting("", choices=("", "fp16", "fp32"))
    seed: int = setting(0, least=0)
    licence: str = ""

    @property
    def given(self) -> bool:
        return self.kind != "none"

    def check(self, benchmark: str, stage: str) -> None:
        """Whether it can do that stage of that benchmark. Raises ConfigError."""
        if not self.given:
            if self != BaselineConfig():
                raise ConfigError("settings of baseline.* are given, but no baseline=NAME; leave them out")
            return
        if benchmark not in self.benchmarks:
            raise ConfigError(f"baseline {self.method} is for {', '.join(self.benchmarks)}, not benchmark={benchmark}")
        if self.kind == "runner":
            self._check_runner(benchmark)
        elif stage != "score":
            raise ConfigError(f"{self.method} is not run here: {self.how}; then give stage=score results=FOLDER")

    def _check_runner(self, benchmark: str) -> None:
        if self.steps < 1:
            raise ConfigError(f"baseline.steps={self.steps} must be at least 1")
        for key in ("pipeline", "precision", "base_model"):
            if not getattr(self, key):
                raise ConfigError(f"baseline.{key} is empty; {self.method} is run here and needs it")
        if self.size % 8:
            raise ConfigError(f"baseline.size={self.size} is not divisible by 8, the pixels per latent")
        if self.pipeline != "instruct_pix2pix" and benchmark not in self.condition_models:
            raise ConfigError(f"baseline.condition_models has no {benchmark}; give a hub id or a folder")
