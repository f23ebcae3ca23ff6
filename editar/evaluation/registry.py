"""Every benchmark by name: what the folders of this package define."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

import editar.evaluation
from editar.errors import ConfigError
from editar.evaluation.benchmark import Benchmark


@cache
def benchmarks() -> dict[str, type[Benchmark]]:
    """Name -> class. A folder's `__init__.py` imports its benchmark; abstract parents have no name."""
    for module in pkgutil.iter_modules(editar.evaluation.__path__, "editar.evaluation."):
        if module.ispkg:
            import_module(module.name)

    def named(parent: type[Benchmark]) -> dict[str, type[Benchmark]]:
        found = {parent.name: parent} if "name" in vars(parent) else {}
        for child in parent.__subclasses__():
            found |= named(child)
        return found

    return named(Benchmark)  # type: ignore[type-abstract]


def benchmark_class(name: str) -> type[Benchmark]:
    """Raises ConfigError for an unknown name."""
    if name not in benchmarks():
        raise ConfigError(f"benchmark={name} is not one of {', '.join(sorted(benchmarks()))}")
    return benchmarks()[name]
