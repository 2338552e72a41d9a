"""Figures for files and pages, drawn where there may be no screen."""

import base64
import io
from typing import TYPE_CHECKING

from rlhf_lab.workbench.session import in_kernel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def off_screen() -> None:
    """Keep matplotlib from opening windows; call it before the lab's figures are imported. A notebook keeps its way."""
    import matplotlib

    if not in_kernel():
        matplotlib.use("Agg")


def as_png(figure: "Figure", dpi: int = 130) -> str:
    """The figure as PNG in base64."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return base64.b64encode(file.getvalue()).decode()
