"""Pictures of a transfer: the plan, the map of layers, the curves of training, teacher against student.

Every function gives a matplotlib `Figure` without touching matplotlib's global state. They are made for a width of 800
pixels, as in a README, and tell apart by brightness, markers and hatches what they tell apart by colour.
"""

from .charts import TERMS, accuracy_figure, comparison_figure, curves_figure
from .maps import layer_map_figure, layer_plan_figure, plan_figure, sorted_plan
from .responses import responses_figure
from .style import save_figure

__all__ = [
    "TERMS",
    "accuracy_figure",
    "comparison_figure",
    "curves_figure",
    "layer_map_figure",
    "layer_plan_figure",
    "plan_figure",
    "responses_figure",
    "save_figure",
    "sorted_plan",
]
