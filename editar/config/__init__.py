"""Every setting of editar as a typed dataclass. No torch here.

Hydra composes YAML from `configs/`; `to_dataclass` merges the result into one of the entry classes.
Unknown keys, wrong types, values out of range and impossible combinations stop there, before any weight is loaded,
with one line that names the key, the value found and what is allowed.
"""

from __future__ import annotations

from editar.config.baseline import BaselineConfig
from editar.config.compose import explain, from_yaml, literal, override, read_yaml, to_dataclass, to_yaml
from editar.config.data import DataConfig, DropConfig, NanoDataConfig, PicturesConfig, SourceConfig
from editar.config.editing import FITS, AppConfig, EditConfig
from editar.config.entries import EvalConfig, TokenizerTrainConfig, TrainConfig
from editar.config.evaluation import NetworkSources
from editar.config.fields import check_choice, check_utf8, is_open, kind_of
from editar.config.model import GPTConfig, RopeConfig, TeacherConfig, TextConfig, TokenizerConfig
from editar.config.plain import CONFIG_DIR, from_plain, plain_training
from editar.config.training import LoraConfig, LossConfig, OptimConfig, SamplingConfig, WandbConfig
