"""Errors whose text is one line for the person who caused them: what was found, what was expected, what to do.

Entries and scripts print a UserError and exit with code 2; of anything else a line, and a file with the traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Base of all errors that the user can mend."""


class ConfigError(UserError):
    """A setting that cannot work."""


class ImageError(UserError):
    """A picture file that cannot be used."""


class ImageTooLarge(ImageError):
    """More pixels than anybody needs: a mistake or a decompression bomb."""


class DataError(UserError):
    """A data set that is missing, damaged or not what was expected."""


class BenchmarkError(DataError):
    """A benchmark's files, or results for it, that cannot be scored."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or does not fit."""


class TrainingError(UserError):
    """A training that cannot go on."""


class LostProcess(UserError, RuntimeError):
    """Another process of the job died or does not answer; what went wrong is told there."""


def one_line(error: BaseException) -> str:
    """A library's message without its line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine did not suffice; libraries under torch have words of their own."""
    text = str(error).lower()
    words = ["can't allocate memory", "cannot allocate memory", "out of memory", "cublas_status_alloc_failed"]
    words += ["storage size calculation overflowed", "failed to map segment"]
    no_room = text == "could not create a primitive"  # oneDNN; of operations that it lacks it says more
    return no_room or isinstance(error, MemoryError) or any(word in text for word in words)
