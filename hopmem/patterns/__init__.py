"""Files ↔ arrays: every kind of source, and the same kinds for the answers."""

from hopmem.patterns.answers import Target, save, writing
from hopmem.patterns.files import kind_of, load
from hopmem.patterns.source import Form, Layout, Loaded, Reading, Skipped, spoken
from hopmem.patterns.unpack import LIMIT as UNPACK_LIMIT

__all__ = [
    "UNPACK_LIMIT",
    "Form",
    "Layout",
    "Loaded",
    "Reading",
    "Skipped",
    "Target",
    "kind_of",
    "load",
    "save",
    "spoken",
    "writing",
]
