"""`scripts/inspect_speed.py` on the reference checkpoint: its numbers make the engine write the target codes."""

from __future__ import annotations

import re

from tests.helpers.tiny import run_module


def test_passes_are_told_for_each_window() -> None:
    options = ["--samples", "2", "--windows", "1", "16", "auto"]
    done = run_module("scripts/inspect_speed.py", "checkpoint=reference/nano", *options)
    assert done.returncode == 0, done.stderr
    assert "2 held-out pairs" in done.stdout
    assert "left their targets" not in done.stdout
    passes = {
        window: float(n) for window, n in re.findall(r"^ *(\w+) +([\d.]+) +[\d.]+ +[\d.]+ +[\d.]+$", done.stdout, re.M)
    }
    assert passes["1"] == 63 and 4 < passes["16"] < 30 and passes["auto"] <= 63


def test_what_is_missing_is_named() -> None:
    done = run_module("scripts/inspect_speed.py", "sampling.temperature=0.5")
    assert done.returncode == 2
    assert done.stderr.strip() == "inspect_speed: give one checkpoint=FOLDER"
    done = run_module("scripts/inspect_speed.py", "checkpoint=reference/nano", "sampling.greedy=true")
    assert "sampling.greedy=true draws nothing" in done.stderr
