"""The parameters of 09_live."""

from typing import Any

from pydantic import Field

from rlhf_lab.workbench.stages.base import RunConfig
from rlhf_lab.workbench.tracking import TrackingConfig


class LiveStage(RunConfig):
    """09_live: follow a run while it goes on."""

    run: str = "auto"  # a run's directory or the end of its path; "auto" = the newest that is running, else the newest
    start: str = ""  # an experiment file to start instead, in a process of its own
    start_parameters: dict[str, Any] = {}  # for it: `stage.key` or `key` -> value, as with `-p`
    follow_s: float = Field(0.0, ge=0)  # when nobody watches: for so many seconds at most; 0 = until it has ended
    tracking: TrackingConfig = TrackingConfig(mode="disabled")  # it logs nothing of its own
