"""hopmem: an associative memory that retrieves clean patterns from noisy, masked or partial queries.

The public names are loaded when they are first used, so that `import hopmem` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from hopmem.bank import MemoryBank
    from hopmem.errors import HopmemError
    from hopmem.results import Evaluation, Inspection
    from hopmem.verbs.evaluate import evaluate
    from hopmem.verbs.inspect import inspect
    from hopmem.verbs.optimize import optimize
    from hopmem.verbs.retrieve import Answer, retrieve

__all__ = [
    "Answer",
    "Evaluation",
    "HopmemError",
    "Inspection",
    "MemoryBank",
    "evaluate",
    "inspect",
    "optimize",
    "retrieve",
]

_ROOMS = {"HopmemError": "hopmem.errors", "MemoryBank": "hopmem.bank"}


def __getattr__(name: str) -> Any:
    """Load a public name from its room.

    Returns:
        What the name stands for.

    Raises:
        AttributeError: no public name.
    """
    if name == "__version__":  # looked up when it is asked for: that takes longer than all of --help
        from importlib.metadata import version

        return version("hopmem")
    if name not in __all__:
        raise AttributeError(f"module 'hopmem' has no attribute {name!r}")
    return getattr(import_module(_ROOMS.get(name, "hopmem.verbs")), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not.

    Returns:
        All names.
    """
    return sorted([*globals(), *__all__])
