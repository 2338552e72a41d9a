"""What each logged number means, and what it looks like when all is well.

"Per reply" is a sum over the tokens of a reply, averaged over replies; "per token" a mean over all real
tokens. Healthy ranges are where published runs of language models were, or what the definition says. They
are no laws: a small sandbox may leave them for a good reason.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """One entry. healthy: (low, high), None where no range can be given. otherwise: what to try when it is not well."""

    formula: str
    unit: str
    healthy: tuple[float, float] | None
    words: str
    otherwise: str = ""


GLOSSARY: dict[str, Metric] = {
    "objective/kl": Metric(
        "sum_t (logp - ref_logp)",
        "nats per reply",
        (0.0, 18.0),
        "How far the policy has moved from the reference. Runs on summaries ended at 14 to 18, "
        "over-optimised ones at 50 and more. Negative for long: a bug in temperature, mask or EOS.",
        "Too high: raise kl_coef, lower lr, or stop earlier. Negative: sample and score at the same temperature, "
        "and look at the mask and the EOS.",
    ),
    "objective/kl_k2": Metric(
        "sum_t (logp - ref_logp)^2 / 2", "nats per reply", None, "Estimator k2: biased, and never negative."
    ),
    "objective/kl_k3": Metric(
        "sum_t expm1(ref_logp - logp) - (ref_logp - logp)",
        "nats per reply",
        None,
        "Estimator k3: unbiased and never negative. Far above objective/kl: a few tokens have become very unlikely.",
    ),
    "objective/non_score_reward": Metric(
        "-kl_coef * objective/kl", "reward per reply", None, "What the KL penalty takes away."
    ),
    "objective/entropy": Metric(
        "sum_t -log pi(token_t)",
        "nats per reply",
        None,
        "Falls slowly as the policy grows sure; a sudden fall is collapse.",
    ),
    "objective/scores": Metric(
        "mean score that enters the shaped rewards",
        "reward per reply",
        None,
        "After penalties, as for a missing EOS. Should rise; gold must tell whether that is real.",
    ),
    "objective/scores_raw": Metric(
        "mean score as the reward gave it", "reward per reply", None, "The proxy itself, before penalties."
    ),
    "objective/rlhf_reward": Metric(
        "objective/scores + objective/non_score_reward",
        "reward per reply",
        None,
        "What PPO maximises. If the scores rise while this falls, the KL runs away.",
        "The KL grows faster than the score: raise kl_coef, lower lr, or do fewer epochs.",
    ),
    "objective/kl_coef": Metric(
        "kl_coef",
        "reward per nat",
        None,
        "Constant, or settling when the controller is adaptive; swinging means a bad horizon.",
        "Lengthen kl_horizon, choose a gentler rule, or fix the coefficient where it was good.",
    ),
    "policy/approxkl_avg": Metric(
        "mean_t (logp - old_logp)^2 / 2",
        "nats per token",
        (0.0, 0.01),
        "How far one update moves the policy. 0 at the first minibatch; above 0.05 the steps are too large.",
        "Lower lr, do fewer epochs, or set target_kl so that an update stops in time.",
    ),
    "policy/clipfrac_avg": Metric(
        "share of tokens whose clipped branch is the larger loss",
        "share of tokens",
        (0.0, 0.1),
        "Usually under 0.07; above 0.2 the learning rate or the number of epochs is too large.",
        "Lower lr, do fewer epochs, or take a larger batch.",
    ),
    "policy/entropy_avg": Metric(
        "mean_t H(pi(. | s_t))",
        "nats per token",
        None,
        "A slow decline is normal; a fast one is collapse.",
        "Lower lr, raise kl_coef, or set a small entropy_coef; then read the samples: are they all alike?",
    ),
    "policy/grad_norm": Metric("norm of the policy's gradient before clipping", "1", None, "Spikes announce trouble."),
    "loss/policy_avg": Metric(
        "mean_t max(-A r, -A clip(r, 1 - eps, 1 + eps))",
        "1",
        None,
        "Near 0 by construction; its level says little.",
    ),
    "loss/kl_avg": Metric(
        "estimate of the KL that is a part of the loss", "nats", None, "0 where the KL is in the reward."
    ),
    "loss/ptx_avg": Metric(
        "-mean log pi(token) on pretraining text",
        "nats per token",
        None,
        "Should stay where it began: a rise is what alignment costs the language model.",
    ),
    "loss/value_avg": Metric(
        "mean_t max((V - R)^2, (V_clipped - R)^2) / 2", "reward squared", None, "Falls as the critic learns."
    ),
    "val/clipfrac_avg": Metric(
        "share of tokens whose clipped value error is the larger",
        "share of tokens",
        (0.0, 0.2),
        "High: the critic moves too fast.",
    ),
    "val/ratio": Metric(
        "mean_t exp(logp - old_logp)",
        "1",
        (0.9, 1.1),
        "1 at the first minibatch, and close to it after; 2 or 0.1 is too drastic.",
        "Lower lr. Off from the first update: dropout is on, or sampling and training differ in temperature or mask.",
    ),
    "val/explained_var": Metric(
        "1 - MSE(V, R) / Var(R)",
        "1",
        (0.0, 1.0),
        "From 0 or less towards 1; still at 0 after 50 updates, the critic does not learn.",
        "Start the critic from the reward model, raise critic_lr or value_coef, or give it a critic_warmup.",
    ),
    "val/grad_norm": Metric("norm of the critic's gradient before clipping", "1", None, "Spikes announce trouble."),
    "val/num_eos_tokens": Metric(
        "number of replies that ended with EOS", "replies per batch", None, "Should approach the batch."
    ),
    "completions/mean_length": Metric(
        "mean number of tokens of a reply",
        "tokens",
        None,
        "Growing with the score: the reward may be paying for length.",
        "Read the samples; penalise length in the reward, balance the lengths of the comparisons, or raise kl_coef.",
    ),
    "completions/clipped_ratio": Metric(
        "share of replies cut off at the limit",
        "share of replies",
        (0.0, 0.05),
        "1 - eos_rate when nothing else ends a reply.",
    ),
    "completions/eos_rate": Metric(
        "share of replies that ended with EOS",
        "share of replies",
        (0.95, 1.0),
        "Falling: the policy forgets to stop.",
        "Raise missing_eos_penalty or max_new_tokens, and check that the SFT data end with EOS.",
    ),
    "time/rollout": Metric("time to sample the batch", "s", None, "Grows with the length of replies."),
    "time/score": Metric("time to score the batch", "s", None, "Rewards, reference log-probabilities and values."),
    "time/train": Metric("time of the gradient steps", "s", None, "All epochs and minibatches of the update."),
    "lr": Metric("learning rate of the next step", "1", None, "Follows the schedule."),
    "episode": Metric("replies sampled since the start", "replies", None, "The x-axis of PPO."),
    "global_step": Metric("optimizer steps since the start", "steps", None, "The x-axis of SFT and the reward model."),
    "gold/mean": Metric(
        "mean gold reward",
        "reference standard deviations",
        None,
        "The truth that only a sandbox knows. Should rise with the proxy; where it falls, that is over-optimisation.",
        "The proxy is being exploited: stop here, raise kl_coef, or train the reward model on more comparisons or as "
        "an ensemble.",
    ),
    "gold/win_rate": Metric(
        "P(gold of the policy's reply > gold of the reference's), ties 1/2",
        "share of prompts",
        (0.5, 1.0),
        "1/2 is no better than the reference.",
        "Read the samples beside the reference's; check the reward model's accuracy before training on.",
    ),
    "train/loss": Metric(
        "the loss of the stage on the batch",
        "nats",
        None,
        "SFT: per token; reward model: per comparison, ranking or rating (squared rating units by regression).",
    ),
    "train/accuracy": Metric(
        "P(score of the chosen > score of the rejected), ties 1/2",
        "share of comparisons",
        None,
        "On the batch just trained on.",
    ),
    "train/gap": Metric(
        "mean score of the chosen - score of the rejected", "reward", None, "On the batch just trained on."
    ),
    "train/reward_chosen": Metric(
        "beta * sum_t (logp - ref_logp), mean over the chosen",
        "reward",
        None,
        "DPO and KTO: the implicit reward. DPO's may fall, as long as that of the rejected falls faster.",
    ),
    "train/reward_rejected": Metric(
        "beta * sum_t (logp - ref_logp), mean over the rejected", "reward", None, "DPO and KTO: the implicit reward."
    ),
    "train/kl": Metric(
        "mean over mismatched replies of sum_t (logp - ref_logp), at least 0",
        "nats per reply",
        None,
        "KTO: the point that replies are compared with.",
    ),
    "eval/loss": Metric(
        "the same loss on held-out data",
        "nats",
        None,
        "Rising while train/loss falls is overfitting.",
        "Stop earlier, do fewer epochs, lower lr, or collect more data.",
    ),
    "eval/accuracy": Metric(
        "P(score of the chosen > score of the rejected), ties 1/2",
        "share of comparisons",
        (0.6, 0.85),
        "People agree with each other on about 0.73; above 0.85 on their labels, look for a leak. 1/2 is guessing.",
        "Check which column is chosen and which rejected, and whether the held-out labels come from the same source.",
    ),
    "eval/gap": Metric(
        "mean score of the chosen - score of the rejected", "reward", None, "Grows as the model grows sure."
    ),
    "judge/accuracy": Metric(
        "P(verdict agrees with gold), ties 1/2", "share of verdicts", (0.5, 1.0), "1/2 is guessing."
    ),
    "judge/kappa": Metric(
        "(agreement - chance) / (1 - chance)", "1", (0.0, 1.0), "Cohen's, against gold; 0 is chance."
    ),
    "judge/consistency": Metric(
        "share of pairs with the same winner in both orders",
        "share of pairs",
        (0.8, 1.0),
        "0 for a judge that sees nothing but the place.",
    ),
    "judge/conflict_rate": Metric(
        "share of pairs whose winner changes with the order",
        "share of pairs",
        (0.0, 0.2),
        "The other side of consistency.",
    ),
    "judge/first_share": Metric(
        "share of verdicts for the reply shown first",
        "share of verdicts",
        (0.45, 0.55),
        "1/2 is fair, because every pair is shown in both orders.",
    ),
    "judge/primacy": Metric(
        "share of pairs won by whichever is first", "share of pairs", (0.0, 0.1), "Conflicts for the first."
    ),
    "judge/recency": Metric(
        "share of pairs won by whichever is second", "share of pairs", (0.0, 0.1), "Conflicts for the second."
    ),
    "judge/preference_fairness": Metric(
        "recency against primacy, scaled to [-1, 1]",
        "1",
        (-0.2, 0.2),
        "0 is fair; the sign tells which place is favoured.",
    ),
    "judge/longer_share": Metric(
        "share of verdicts for the longer reply", "share of verdicts", None, "Compare it with gold's."
    ),
    "judge/gold_longer_share": Metric(
        "how often gold prefers the longer", "share of verdicts", None, "What length deserves."
    ),
    "judge/excess_length": Metric(
        "longer_share - gold_longer_share",
        "share of verdicts",
        (-0.05, 0.05),
        "Liking for length beyond its merit.",
    ),
    "judge/coverage": Metric(
        "share of pairs with a verdict left", "share of pairs", (0.8, 1.0), "What a remedy leaves undecided."
    ),
    "judge/mass": Metric(
        "p(first verdict) + p(second verdict)",
        "probability",
        (0.9, 1.0),
        "Of a judge that is a language model. Far below 1 it was about to say something else than a verdict.",
    ),
    "judge/invalid_share": Metric(
        "share of answers that are no verdict", "share of verdicts", (0.0, 0.05), "Invalid stays invalid."
    ),
}


def healthy_ranges(names: list[str]) -> dict[str, tuple[float, float]]:
    """The healthy range of each of these metrics that has one."""
    return {name: GLOSSARY[name].healthy for name in names if name in GLOSSARY and GLOSSARY[name].healthy}
