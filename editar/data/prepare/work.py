"""The work of a preparation: shards with checksums, and a process pool with bounded memory."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from editar.data.shards import OWN_NAME
from editar.errors import DataError
from editar.runtime.files import checksum


class ShardWriter:
    """Rows -> `PREFIX-000.parquet`, `PREFIX-001.parquet`, ... below `folder`, each with a checksum.

    A context manager: of a body that fails the file that was begun is removed, the finished ones stay.
    """

    def __init__(
        self, folder: Path, prefix: str, schema: pa.Schema, rows: int, group: int, compression: str = "none"
    ) -> None:
        """`rows` per file, `group` rows are read at once by whoever wants one of them."""
        self.folder, self.prefix, self.schema = folder, prefix, schema
        self.rows, self.group, self.compression = rows, group, compression
        self.files: list[dict[str, Any]] = []
        self._buffer: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._writer is not None:
            with suppress(Exception):  # a full disk takes no footer either
                self._writer.close()
            self._partial.unlink(missing_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        self._buffer.append(row)
        if len(self._buffer) == self.group or self._written + len(self._buffer) == self.rows:
            self._flush()
        if self._written == self.rows:
            self._finish()

    def close(self) -> list[dict[str, Any]]:
        """-> name, rows, bytes and sha256 of every file."""
        self._flush()
        self._finish()
        return self.files

    @property
    def _next(self) -> str:
        return f"{self.prefix}-{len(self.files):03d}.parquet"

    @property
    def _partial(self) -> Path:
        path = self.folder / self._next
        return path.with_name(f".{path.name}.part{os.getpid()}")

    def _flush(self) -> None:
        if not self._buffer:
            return
        if self._writer is None:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
            self._writer = pq.ParquetWriter(self._partial, self.schema, compression=self.compression, **options)
            self._writer.add_key_value_metadata({OWN_NAME: Path(self._next).name})
        self._writer.write_table(pa.Table.from_pylist(self._buffer, self.schema))
        self._written += len(self._buffer)
        self._buffer = []

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        name, partial = self._next, self._partial
        entry = {"name": name, "rows": self._written, "bytes": partial.stat().st_size, "sha256": checksum(partial)}
        os.replace(partial, self.folder / name)
        self.files.append(entry)
        self._writer, self._written = None, 0


_move_bar: Callable[[int], object] = lambda amount: None  # noqa: E731


def tick(amount: int) -> None:
    """Move the bar from wherever the work is done."""
    _move_bar(amount)


def run_units(work: Callable[[Any], Any], tasks: Iterable[Any], workers: int, bar: tqdm) -> Iterator[Any]:
    """`work(task)` for all tasks, results in any order; at most workers + 1 tasks are in memory."""
    global _move_bar
    if workers <= 1:
        _move_bar = bar.update
        yield from map(work, tasks)
        return
    context = mp.get_context("spawn")
    counter, seen = context.Value("q", 0), 0
    waiting, running = iter(tasks), set[Future]()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (counter,))
    try:
        while True:
            while len(running) <= workers and (task := next(waiting, None)) is not None:
                running.add(pool.submit(work, task))
            if not running:
                return
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if (now := counter.value) > seen:
                bar.update(now - seen)
                seen = now
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise DataError("a worker process died (out of memory?); use fewer --workers and run again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(counter: Any) -> None:
    """Count progress together; die silently on Ctrl-C, and with the parent (or a killed run leaves
    workers behind that write into the folder of the next)."""
    global _move_bar

    def count(amount: int) -> None:
        with counter.get_lock():
            counter.value += amount

    def follow_parent() -> None:
        parent = mp.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    _move_bar = count
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=follow_parent, daemon=True).start()
