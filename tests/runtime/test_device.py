"""Worker processes."""

from __future__ import annotations

import os
import warnings

from editar.metrics.pictures import Mapped, load_in_batches
from editar.runtime.device import usable_workers


def test_no_more_workers_than_cpus_and_no_warnings() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert [usable_workers(wanted) for wanted in (0, 1, cpus + 5)] == [0, 1, cpus]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(load_in_batches(Mapped(str, range(5)), 2, cpus + 5)) == [["0", "1"], ["2", "3"], ["4"]]
