"""A wheel also carries the settings and the list of weights, which lie beside the package in a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = [*Path("configs").rglob("*.yaml"), Path("third_party/weights.yaml")]


class BuildWithSettings(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in FILES:
                copy = Path(self.build_lib, "editar", file)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithSettings})
