"""08_human_feedback: an arm's way through its rounds. Where it stands follows from the files in the run's directory.

A round is two steps: `label`, which a person may stop and take up again at any time, and `learn`, which ends with the
choice of the next round's pairs. Each round has a file of labels of its own; its figures are a finished line.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.labelling import LabelFile, Plan, answer_table, label, simulate
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.session import headless
from rlhf_lab.workbench.stages import Arm
from rlhf_lab.workbench.stages.human_feedback import FEWEST
from rlhf_lab.workbench.studies.human_feedback import Ground, round_figures, training_rows
from rlhf_lab.workbench.studies.human_feedback_results import Finished
from rlhf_lab.workbench.studies.rounds import Learned, candidates, chosen, doubts, learn
from rlhf_lab.workbench.studies.units import Figures

ROBOT = "robot"  # the simulated labeler


class Loops(NamedTuple):
    """The loops of a run."""

    yours: "Loop"  # the first arm, by a person; the robot's, where nobody watches
    arms: dict[Arm, "Loop"]  # by the robot; none without a sandbox


def loops(ground: Ground, run: Run) -> Loops:
    """The loops of a run. Errors: `LabError` where nobody watches and there is no sandbox to label in their stead."""
    cfg, finished = ground.cfg, Finished(ground, run)
    first: dict[tuple, Learned] = {}
    arms = {arm: Loop(arm, ROBOT, ground, finished, run, first) for arm in cfg.arms} if ground.world else {}
    who = ROBOT if headless() else cfg.annotator
    if who == ROBOT and not arms:
        raise LabError("nobody watches, and without a 'sandbox' there is no simulated labeler; open it in JupyterLab")
    return Loops(arms[cfg.arms[0]] if who == ROBOT else Loop(cfg.arms[0], who, ground, finished, run, first), arms)


class Loop:
    """One arm, labelled by one annotator: `label`, `learn`, and again until it is `over`.

    first: labels of a first round -> what they came to, shared by arms.
    """

    def __init__(self, arm: Arm, by: str, ground: Ground, finished: Finished, run: Run, first: dict[tuple, Learned]):
        self.arm, self.by, self.ground, self.finished, self.run = arm, by, ground, finished, run
        self.name = arm if by == ROBOT else f"{arm}-{by}"
        self._first, self._files = first, {}
        self.rounds: list[Figures] = self._done_before()

    @property
    def number(self) -> int:
        """The round that it is in, from 1."""
        return len(self.rounds) + 1

    @property
    def over(self) -> bool:
        """Whether all rounds are done."""
        return self.number > self.ground.cfg.rounds

    def label(self) -> Any:
        """This round's pairs in the labelling widget; the robot answers them at once. None where nothing is left."""
        if self.over:
            print(f"{self.name}: all {self.ground.cfg.rounds} rounds are over")
            return None
        file = self.file(self.number)
        if self.by != ROBOT:
            return label(file, self.by)
        given = simulate(file, ROBOT, self.ground.labeler)
        print(f"{self.name}, round {self.number}: the simulated labeler gave {given} answers")
        return None

    def learn(self) -> None:
        """Train the reward models, run PPO, measure, and choose the next round's pairs.

        Errors: `LabError` while pairs wait for a label, or where too few of the labels decide.
        """
        if self.over:
            return
        began, number, name = time.perf_counter(), self.number, f"{self.name}, round {self.number}"
        files = [self.file(n) for n in range(1, number + 1)]
        _check(files, self.by, name)
        rows = training_rows(files, self.path("preferences.jsonl"))
        learned = self._learned(rows, name)
        figures = round_figures(self.ground, files, rows, learned)
        if number < self.ground.cfg.rounds:
            self._choose(number + 1, learned)
        figures["seconds"] = time.perf_counter() - began
        self.rounds.append(self.finished.add(self._unit(number), figures))
        for n in range(1, number + 1):  # a widget that is still shown can take nothing back that was learned from
            self._files.pop(n).close()

    def _learned(self, rows: list[dict], name: str) -> Learned:
        """What the labels come to. All arms begin with the same labels, which are learned from once."""
        key = tuple((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
        if key in self._first:
            return self._first[key]
        learned = learn(self.ground, rows, self.run, name)
        if self.number == 1:
            self._first[key] = learned
        return learned

    def path(self, name: str) -> Path:
        """A file of this loop in the run's directory."""
        return self.run.file(f"labels/{self.name}/{name}")

    def file(self, number: int) -> LabelFile:
        """The labels of a round that has begun. Errors: `LabError` if its replies are of another SFT model."""
        path = self.path(f"round-{number}.sqlite")
        if number not in self._files and number == 1 and not path.exists():
            self._choose(1, None)
        if number not in self._files:
            file = LabelFile(path)
            if file.items.items[0].about["models"] != self.ground.models:
                file.close()
                raise LabError(f"{path}: its replies are of another SFT model; set 'policy' back, or start a new run")
            self._files[number] = file
        return self._files[number]

    def _choose(self, number: int, learned: Learned | None) -> None:
        """Choose a round's pairs and make their file. Before the first round no model knows anything."""
        cfg, ground = self.ground.cfg, self.ground
        online = learned is not None and self.arm != "offline"
        policy, name = (learned.policy, f"round {number - 1}") if online else (ground.sft, "SFT")
        items = candidates(ground, policy, number, name)
        doubt = doubts(learned, items) if online and self.arm == "online_disagreement" else None
        items = chosen(items, cfg.labels, seed=f"pairs/{cfg.seed}/{number}", doubt=doubt)
        plan = Plan(seed=cfg.seed, repeat_share=cfg.repeat_share)
        self._files[number] = LabelFile(self.path(f"round-{number}.sqlite"), items, plan)

    def _unit(self, number: int) -> str:
        return f"{self.name}/{number}"

    def _done_before(self) -> list[Figures]:
        """The rounds that need not be done again: all, or those behind which this run has the next one's pairs."""
        found, units = [], [self._unit(n) for n in range(1, self.ground.cfg.rounds + 1)]
        whole = all(self.finished.has(unit) for unit in units)
        for number, unit in enumerate(units, 1):
            if not (whole or self.path(f"round-{number + 1}.sqlite").exists()):
                break
            if (figures := self.finished.find(unit)) is None:
                break
            found.append(figures)
        return found


def _check(files: Sequence[LabelFile], by: str, name: str) -> None:
    """Errors: `LabError` with the numbers while pairs of the last file wait, or too few labels of all files decide."""
    tables = [answer_table(file) for file in files]
    firsts = [table[(table["annotator"] == by) & (table["repeat"] == 0)] for table in tables]
    given, total = len(firsts[-1]), len(files[-1].items.items)
    if given < total:
        raise LabError(
            f"{name}: {given} of {total} pairs have a label; label the other {total - given} above and run this again "
            f"(what is there stays in {files[-1].path.name})"
        )
    decide = sum(int((~first["flagged"] & first["answer"].isin(["a", "b"])).sum()) for first in firsts)
    if decide < FEWEST:
        raise LabError(
            f"{name}: {decide} labels decide a pair, and a reward model needs {FEWEST}; the others are ties, skips or "
            "flagged: undo some of these above and run this again"
        )
