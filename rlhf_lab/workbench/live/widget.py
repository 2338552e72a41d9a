"""The page of the live view: drawn by the browser, fed by a watch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

if TYPE_CHECKING:
    from rlhf_lab.workbench.live.watching import Watch

_STATIC = Path(__file__).parent / "static"


class LiveWidget(anywidget.AnyWidget):
    """Shows the page of a watch and hands it what is asked for. The kernel keeps it for a page that is reloaded."""

    _esm = _STATIC / "live.js"
    _css = _STATIC / "live.css"
    view = traitlets.Dict().tag(sync=True)
    beat = traitlets.Int().tag(sync=True)  # a sign of life where the view has not changed

    def __init__(self, watch: "Watch", **traits: Any):
        super().__init__(view=watch.page(), **traits)
        self._watch = watch
        self.on_msg(self._receive)

    def show(self) -> bool:
        """Send the page if it has changed."""
        view = self._watch.page()
        if view == self.view:
            return False
        self.view = view
        return True

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, dict) and content.get("action") == "stop" and isinstance(content.get("run"), str):
            self._watch.stop(content["run"])
            self.show()
