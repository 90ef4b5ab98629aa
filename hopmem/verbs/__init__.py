"""The verbs on arrays: a bank in, a bank or a result out; the command line is a shell over them."""

from hopmem.verbs.evaluate import Evaluation, Row, evaluate
from hopmem.verbs.inspect import Inspection, inspect
from hopmem.verbs.optimize import optimize
from hopmem.verbs.retrieve import Answer, retrieve

__all__ = ["Answer", "Evaluation", "Inspection", "Row", "evaluate", "inspect", "optimize", "retrieve"]
