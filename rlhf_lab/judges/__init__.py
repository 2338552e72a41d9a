"""AI judges: their verdicts in one table, their bias measured, and what swapping the order mends."""

from rlhf_lab.judges.protocol import Judge, Verdict, always_first, ask
from rlhf_lab.judges.regression import fit_biases
from rlhf_lab.judges.remedies import compare_remedies, swap_and_average
from rlhf_lab.judges.replay import ReplayConfig, read_verdicts
from rlhf_lab.judges.scorers import ScoreJudge
from rlhf_lab.judges.simulated import SimulatedJudge, SimulatedJudgeConfig
from rlhf_lab.judges.statistics import summary
from rlhf_lab.judges.table import make_pairs, verdict_table

__all__ = [
    "Judge",
    "ReplayConfig",
    "ScoreJudge",
    "SimulatedJudge",
    "SimulatedJudgeConfig",
    "Verdict",
    "always_first",
    "ask",
    "compare_remedies",
    "fit_biases",
    "make_pairs",
    "read_verdicts",
    "summary",
    "swap_and_average",
    "verdict_table",
]
