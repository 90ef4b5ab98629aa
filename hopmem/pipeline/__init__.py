"""Store, optimize, retrieve, inspect and evaluate: files in, result out."""

from hopmem.pipeline.evaluate import check, evaluate
from hopmem.pipeline.inspect import inspect
from hopmem.pipeline.optimize import OptimizeResult, optimize
from hopmem.pipeline.outcome import Machine, Outcome, Picture
from hopmem.pipeline.retrieve import Match, RetrieveResult, retrieve
from hopmem.pipeline.store import StoreResult, store

__all__ = [
    "Machine",
    "Match",
    "OptimizeResult",
    "Outcome",
    "Picture",
    "RetrieveResult",
    "StoreResult",
    "check",
    "evaluate",
    "inspect",
    "optimize",
    "retrieve",
    "store",
]
