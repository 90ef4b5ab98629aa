"""Results → pictures."""

from hopmem.plots.evaluation import accuracy_chart
from hopmem.plots.learning import learning_chart
from hopmem.plots.portrait import charts, write_charts
from hopmem.plots.sheet import contact_sheet
from hopmem.plots.style import require_matplotlib, require_suffix
from hopmem.plots.thumbnails import thumbnails

__all__ = [
    "accuracy_chart",
    "charts",
    "contact_sheet",
    "learning_chart",
    "require_matplotlib",
    "require_suffix",
    "thumbnails",
    "write_charts",
]
