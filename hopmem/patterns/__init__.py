"""Files ↔ arrays: every kind of source, and the same kinds for the answers."""

from hopmem.patterns.files import kind_of, load, save, targets
from hopmem.patterns.source import Form, Layout, Loaded, Reading, Skipped

__all__ = [
    "Form",
    "Layout",
    "Loaded",
    "Reading",
    "Skipped",
    "kind_of",
    "load",
    "save",
    "targets",
]
