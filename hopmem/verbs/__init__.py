"""The verbs on arrays: a bank in, a bank or a result out; the command line is a shell over them."""

from hopmem.results import Evaluation, Inspection, Row
from hopmem.verbs.evaluate import evaluate
from hopmem.verbs.inspect import inspect
from hopmem.verbs.optimize import optimize
from hopmem.verbs.portrait import Portrait, portrait
from hopmem.verbs.retrieve import Answer, retrieve, states

__all__ = [
    "Answer",
    "Evaluation",
    "Inspection",
    "Portrait",
    "Row",
    "evaluate",
    "inspect",
    "optimize",
    "portrait",
    "retrieve",
    "states",
]
