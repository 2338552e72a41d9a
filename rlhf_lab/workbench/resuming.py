"""Keep a training state on disk while a notebook trains, and take it up again."""

from rlhf_lab.training import sft
from rlhf_lab.training.checkpoints import Resumable, load_training, save_training
from rlhf_lab.training.processes import ALONE
from rlhf_lab.workbench.runs import Run


class Keeper:
    """Saves the training state of a run: every `save_every` calls, and when the run is stopped.

    Made behind the state and called at the end of each turn of the loop. With `resume` it first takes up the newest
    checkpoint of the run's directory, and the run forgets the metrics that came after it. `part` names a further state
    of the same run, such as a member of an ensemble, which logs no metrics.
    """

    def __init__(self, cfg, run: Run, state: Resumable, *, keep: int = 2, part: str = ""):
        self.every, self.run, self.state, self.keep = cfg.save_every, run, state, keep
        self.folder = run.path / "training" / part
        self.calls, self.best = 0, float("-inf")
        if cfg.resume:
            step = load_training(self.folder, state)
            if not part:
                run.rewind(step)
            found = f"resumed at {run.step_name} {step}" if step else "no checkpoint yet: starting anew"
            print(f"{part}: {found}" if part else found)
        self.whole = state.step  # the last step whose turn of the notebook's loop came to its end
        if not getattr(state, "processes", ALONE).sharded:  # shards are put together by all, and all stop at once
            run.saver = self.save

    def __call__(self, score: float | None = None) -> None:
        """Save if it is time. score: how good the model is now, to keep the best one."""
        self.calls, self.whole = self.calls + 1, self.state.step
        better = score is not None and score > self.best
        if better:
            self.best = score
        if better or (self.every and self.calls % self.every == 0):
            self.save(best=better)

    def save(self, *, best: bool = False) -> None:
        """Save now, unless the loop was stopped before it logged a step: it would be missing from the metrics."""
        if self.whole == self.state.step:
            save_training(self.folder, self.state, step=self.state.step, keep=self.keep, best=best)


def train_sft(cfg, run: Run, trainer) -> None:
    """Train with TRL's trainer, which keeps its own checkpoints; with `resume` from the newest whole one."""
    checkpoint = sft.last_checkpoint(run.path / "training") if cfg.resume else None
    if cfg.resume:
        run.rewind(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
        print(f"resumed at {checkpoint.name}" if checkpoint else "no checkpoint yet: starting anew")
    sft.train(trainer, checkpoint)
