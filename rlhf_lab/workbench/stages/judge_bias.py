"""The parameters of 04_judge_bias."""

from pydantic import Field

from rlhf_lab.data.loading import OnBad
from rlhf_lab.judges.backends.config import JudgeConfig
from rlhf_lab.judges.backends.simulated import SimulatedJudgeConfig
from rlhf_lab.judges.readers.recorded import RecordedConfig
from rlhf_lab.workbench.learned_judge import LearnedJudgeConfig
from rlhf_lab.workbench.stages.base import StageConfig


class JudgeBiasStage(StageConfig):
    """04_judge_bias: how far a judge can be trusted."""

    policy_a: str = "auto"  # the PPO policy
    policy_b: str = "auto"  # the SFT model
    reward: str = "auto"  # the reward model, as a judge
    prompts: str = "sandbox"  # a file or hub id with a column prompt; the first `eval_prompts` are answered
    columns: dict[str, str] = {}
    on_bad: OnBad = "raise"
    repeats: int = Field(1, ge=1)  # how often each judge is asked the same
    judge: SimulatedJudgeConfig = SimulatedJudgeConfig(  # whose biases are planted, to be found again
        position=1.0, length=0.1, temperature=0.5
    )
    learned: LearnedJudgeConfig | None = LearnedJudgeConfig()  # judges that are trained here
    ask: dict[str, JudgeConfig] = {}  # further judges: name -> kind and settings
    recorded: RecordedConfig | None = None  # stored verdicts to analyse as well
    repeats_of: list[str] = []  # files of scores given several times to the same items
    repeats_column: str = "gpt4_score"  # where these files have an item's scores, as a list
    likert: dict[str, int | float] | None = None  # the Hugging Face study of 2023 simulated, with these settings
    max_new_tokens: int = Field(40, ge=1)
