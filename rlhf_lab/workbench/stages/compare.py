"""The parameters of 07_compare_runs."""

from pydantic import Field

from rlhf_lab.workbench.stages.base import RunConfig
from rlhf_lab.workbench.tracking import TrackingConfig


class CompareStage(RunConfig):
    """07_compare_runs: any set of runs side by side."""

    runs: list[str] = []  # paths, ends of paths, experiments, experiment/stage, groups, tags, patterns, wandb folders
    baseline: str = ""  # the variant or run that others are compared with; "" = the first
    results: list[str] = []  # results, or logged metrics whose last value counts; [] = those that all stages share
    metrics: list[str] = []  # logged metrics to draw; [] = the most telling that all logged
    samples: int = Field(6, ge=0)  # prompts to show side by side
    tracking: TrackingConfig = TrackingConfig(mode="disabled")  # it logs nothing of its own
