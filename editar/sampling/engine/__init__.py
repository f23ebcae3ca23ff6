"""The fast way from a prefix to target codes. `Engine` in engine.py directs it; the others are its parts."""

from editar.sampling.engine.engine import Engine, Progress
