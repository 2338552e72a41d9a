"""What a notebook takes: files of the sandbox or of the user, and what earlier notebooks left.

A parameter may be `sandbox` (made now, from the embedded world), `auto` (the newest finished run, or one made now), or
a path.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from rlhf_lab import data
from rlhf_lab.errors import LabError
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.processes import launched_processes
from rlhf_lab.training.reward_model import RewardModelEval, score_replies
from rlhf_lab.workbench.experiments.files import read_yaml
from rlhf_lab.workbench.experiments.taken import note_taken
from rlhf_lab.workbench.notebooks import execute
from rlhf_lab.workbench.plots import calibration_table
from rlhf_lab.workbench.records import latest_run, mark_queued, runs_root
from rlhf_lab.workbench.run_directory import refuse_other_settings
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.writing import plain

HOUSE = Path(__file__).resolve().parents[2]  # the repository, which holds notebooks/ and experiments/
_MADE_BY = {"sft": "01_sft", "reward_model": "02_reward_model", "ppo": "03_ppo"}


def sandbox_files(cfg, run: Run) -> tuple[World | None, dict[str, Path]]:
    """The world that `cfg.sandbox` names and the files it writes into the run: name -> path. (None, {}) without one."""
    if not cfg.sandbox:
        return None, {}
    world = World.load(cfg.sandbox)
    folder = world.write(run.file("data"), demonstrations=getattr(cfg, "n_demonstrations", 400), seed=cfg.seed)
    return world, {
        "demonstrations": folder / "demonstrations.jsonl",
        "train": folder / "prompts-train.jsonl",
        "heldout": folder / "prompts-heldout.jsonl",
    }


def source(value: str, files: dict[str, Path], name: str) -> str:
    """The sandbox's file for `sandbox`, else the value itself. Errors: `LabError` where there is no sandbox."""
    if value != "sandbox":
        return value
    if name not in files:
        raise LabError(f"{name} is 'sandbox' but the parameter 'sandbox' is empty; give a path or hub id for {name}")
    return str(files[name])


def base_model(value: str, world: World | None) -> str:
    """The path of the base model, of a run its checkpoint. Errors: `LabError` where there is no sandbox."""
    if value != "sandbox":
        return str(Path(value) / "checkpoint") if (Path(value) / "checkpoint").is_dir() else value
    if world is None:
        raise LabError("model is 'sandbox' but the parameter 'sandbox' is empty; give a path or hub id for model")
    return world.base_model


def base_for_box(world: World | None) -> dict[str, object]:
    """The sandbox's base model under its name, for the box of one's own prompts."""
    from rlhf_lab.models import load_policy

    return {"base": load_policy(world.base_model, trainable=False)} if world else {}


def checkpoint(value: str, stage: str, cfg) -> str:
    """A model directory for a parameter that names one.

    `auto`: of the newest finished run of `stage`, of this seed if there is one, or of one made now with the defaults.
    `<notebook>/<run>.yaml` under experiments/: of the newest run of exactly those settings and this seed, or of one
    made now. A run's directory: its checkpoint. Anything else is a path or hub id already.
    """
    if value == "auto":
        found = latest_run(stage, cfg.experiment, seed=cfg.seed) or latest_run(stage, seed=cfg.seed)
        if found is None:
            found = _make(f"{_MADE_BY[stage]}.ipynb", {}, stage, cfg)
        else:
            print(f"{stage}: taking {found}")
        note_taken(value, stage, [cfg.experiment, None], cfg.seed, found)
    elif value.endswith(".yaml"):
        found = _of_experiment(value, stage, cfg)
    elif (Path(value) / "checkpoint").is_dir():
        found = Path(value)
    else:
        return value
    return str(found / "checkpoint")


def experiment_file(value: str) -> Path | None:
    """The experiment file that a parameter names: a path, or one below experiments/."""
    return next((path for path in (Path(value), HOUSE / "experiments" / value) if path.is_file()), None)


def _of_experiment(value: str, stage: str, cfg) -> Path:
    file = experiment_file(value)
    if file is None:
        raise LabError(f"{stage}: no experiment file {value}, here or under {HOUSE / 'experiments'}")
    settings = read_yaml(file)
    named = {"experiment": f"{file.parent.name}-{file.stem}-s{cfg.seed}"}
    found = latest_run(stage, named["experiment"])
    if found is not None and _made_with(found, file.parent.name, _parameters(cfg, {**settings, **named})):
        print(f"{stage}: taking {found}")
    else:
        found = _make(f"{file.parent.name}.ipynb", {**settings, **named}, stage, cfg)
    note_taken(value, stage, [named["experiment"]], None, found, file=file)
    return found


def _parameters(cfg, settings: dict) -> dict:
    common = {"experiment": cfg.experiment, "sandbox": cfg.sandbox, "seed": cfg.seed, "threads": cfg.threads}
    return {**common, **settings}


def _made_with(run: Path, notebook: str, parameters: dict) -> bool:
    """Whether these are the settings of a run, whose experiment file may have been edited since."""
    from rlhf_lab.workbench.stages import STAGES

    resolved = plain(STAGES[notebook].parse(parameters, notebook).model_dump(mode="json"))
    try:
        refuse_other_settings(run, resolved)
    except LabError as error:
        print(f"not taken: {error}")
        return False
    return True


def _make(notebook: str, settings: dict, stage: str, cfg) -> Path:
    path = HOUSE / "notebooks" / notebook
    if not path.is_file():
        raise LabError(
            f"no finished {stage} run was found, and {path} is not here to make one; give the path of a model"
        )
    if launched_processes() > 1:
        raise LabError(f"{stage}: no finished run was found; make one with {notebook} before several processes train")
    print(f"{stage}: no finished run was found, so {notebook} makes one now (about a minute)")
    parameters = _parameters(cfg, settings)
    run_dir = runs_root() / parameters["experiment"] / stage / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-s{cfg.seed}"
    mark_queued(run_dir, stage=stage, experiment=parameters["experiment"])
    execute(path, run_dir / "notebook.ipynb", {**parameters, "run_dir": str(run_dir)})
    return run_dir


def sandbox_comparisons(cfg, run: Run, world: World | None, policy, tokenizer) -> dict[str, Path]:
    """Sample `k` replies to each prompt from the policy, let the labeler rank them, and write both splits.

    Held-out comparisons are always pairs, by the same labeler without the biases that the run plants.
    """
    from rlhf_lab.training.comparisons import sample_rankings

    if world is None:
        return {}
    labeler = world.labeler(**{**cfg.labeler.model_dump(), "seed": cfg.labeler.seed + cfg.seed})
    fair = world.labeler(temperature=cfg.labeler.temperature, flip=cfg.labeler.flip, seed=cfg.labeler.seed + cfg.seed)
    wanted = {
        "comparisons": ("train", cfg.n_prompts, cfg.k, labeler, cfg.preferences),
        "heldout_comparisons": ("heldout", cfg.n_heldout, 2, fair, cfg.heldout),
    }
    files = {}
    for name, (split, n, k, judge, value) in wanted.items():
        if value != "sandbox":
            continue
        rows = sample_rankings(
            policy,
            tokenizer,
            world.prompts(split, n, cfg.seed + 1),
            judge.rank,
            k=k,
            max_new_tokens=cfg.max_new_tokens,
            seed=cfg.seed + 1 + len(split),
        )
        files[name] = run.file("data") / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def prompt_split(cfg, files: dict[str, Path]) -> data.Split:
    """Prompts to learn from and others to measure on: the sandbox's two files, or a part held back of one's own."""
    if cfg.prompts == "sandbox":
        train = data.load_prompts(source(cfg.prompts, files, "train"))
        return data.Split(train, data.load_prompts(source(cfg.prompts, files, "heldout"), limit=cfg.eval_prompts))
    return data.hold_out(data.load_prompts(cfg.prompts, columns=cfg.columns, on_bad=cfg.on_bad), cfg.eval_prompts)


def load_rankings(
    value: str, files: dict[str, Path], name: str, columns: dict, limit: int, tokenizer, *, on_bad: str = "raise"
):
    """Rankings from a file of rankings or of preferences, as text."""
    where = source(value, files, name)
    if value == "sandbox":
        return data.load_rankings(where)
    how = {"columns": columns, "limit": limit, "on_bad": on_bad}
    if "completions" in {*columns, *data.column_names(where)}:
        return data.to_text(data.load_rankings(where, **how), tokenizer)
    return data.preferences_to_rankings(data.to_text(data.load_preferences(where, **how), tokenizer))


class RewardModelReport(NamedTuple):
    """What 02_reward_model shows and records."""

    table: pd.DataFrame
    results: dict[str, float]
    probability: np.ndarray  # (comparisons,) the model's P(first of the pair is preferred)
    outcome: np.ndarray  # (comparisons,) whether it was
    scores: np.ndarray
    gold: np.ndarray


def reward_model_report(
    cfg, scorer, tokenizer, labelled, held_out, before, after: RewardModelEval, world
) -> RewardModelReport:
    """Accuracy before and after, that of length alone, its ceiling, agreement with gold, and what the plots need."""
    pairs = [(row["prompt"], *_best_and_worst(row)) for row in held_out]
    prompts, best, worst, ended = (list(column) for column in zip(*pairs, strict=True))
    ours = [
        score_replies(scorer, tokenizer, prompts, side, finished=ends, max_length=cfg.max_length).cpu().numpy()
        for side, ends in zip((best, worst), zip(*ended, strict=True), strict=True)
    ]
    results = {"accuracy": after.accuracy} | _by_length(labelled, best, worst)
    gold = np.full(len(pairs), np.nan)
    if world:
        true = [np.array(world.gold(prompts=prompts, completions=side)) for side in (best, worst)]
        results |= _against_gold(ours, true)
        gold = np.concatenate(true)
    results |= {"accuracy_before": before.accuracy, "loss": after.loss, "comparisons": after.comparisons}
    first_wins = np.random.default_rng(0).random(len(pairs)) < 0.5  # a fair coin says which side is shown first
    gap = ours[0] - ours[1]
    probability = 1 / (1 + np.exp(-np.where(first_wins, gap, -gap)))
    bins = calibration_table(probability, first_wins.astype(float))
    results["calibration_gap"] = float(np.average((bins["share"] - bins["said"]).abs(), weights=bins["n"]))
    return RewardModelReport(
        pd.DataFrame({"value": {name.replace("_", " "): value for name, value in results.items()}}).round(3),
        results,
        probability,
        first_wins.astype(float),
        np.concatenate(ours),
        gold,
    )


def _by_length(labelled, best: list[str], worst: list[str]) -> dict[str, float]:
    """The accuracy of "the longer one", or "the shorter" where the training data prefer that; a tie counts 1/2."""
    if "ranks" not in labelled.column_names:
        return {}

    def longer(better: list[str], other: list[str]) -> float:
        more = np.array([len(a.split()) for a in better]) - np.array([len(b.split()) for b in other])
        return float(((more > 0) + 0.5 * (more == 0)).mean())

    sides = [_best_and_worst(row)[:2] for row in labelled if len(set(row["ranks"])) > 1]
    rule = longer(*zip(*sides, strict=True)) >= 0.5
    share = longer(best, worst)
    return {"accuracy_of_length": share if rule else 1 - share}


def _best_and_worst(row) -> tuple[str, str, tuple[bool, bool]]:
    """The best and the worst reply, and which of the two finished."""
    best, worst = int(np.argmin(row["ranks"])), int(np.argmax(row["ranks"]))
    finished = row.get("finished") or [True] * len(row["ranks"])
    return row["completions"][best], row["completions"][worst], (finished[best], finished[worst])


def _against_gold(ours, true) -> dict[str, float]:
    """Agreement with gold, and the accuracy that gold itself would reach on the labeler's noisy choices."""
    differ = true[0] != true[1]
    agree = np.sign(ours[0] - ours[1])[differ] == np.sign(true[0] - true[1])[differ]
    scores, gold = np.concatenate(ours), np.concatenate(true)
    return {
        "ceiling": float(np.mean((true[0] > true[1]) + 0.5 * (true[0] == true[1]))),
        "accuracy_against_gold": float(agree.mean()),
        "correlation_with_gold": float(stats.spearmanr(scores, gold).statistic),
    }


def judge_pairs(ours: pd.DataFrame, theirs: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Pairs of two policies' replies to the same prompts; a seeded coin decides whose reply is a (column `ours`)."""
    from rlhf_lab.judges import make_pairs

    is_a = np.random.default_rng(seed).random(len(ours)) < 0.5
    rows = pd.DataFrame({"prompt": ours["prompt"], "ours": np.where(is_a, "a", "b")})
    for column, name in {"reply": "reply", "gold": "gold"}.items():
        if column in ours:
            rows[f"{name}_a"] = np.where(is_a, ours[column], theirs[column])
            rows[f"{name}_b"] = np.where(is_a, theirs[column], ours[column])
    return make_pairs(rows[ours["reply"] != theirs["reply"]])


def win_rates(verdicts: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Each judge's win rate of the first policy by where it was shown: columns judge, "PPO is shown", "PPO wins".

    A tie counts one half; invalid verdicts are left out. "both" pools the two orders.
    """
    rows = verdicts[verdicts["valid"]].merge(pairs[["pair_id", "ours"]], on="pair_id")
    wins = np.where(rows["verdict"] == "tie", 0.5, rows["verdict"] == rows["ours"])
    is_first = (rows["ours"] == "a") == (rows["order"] == 0)
    rows = rows.assign(**{"PPO wins": wins.astype(float), "PPO is shown": np.where(is_first, "first", "second")})
    rows = pd.concat([rows, rows.assign(**{"PPO is shown": "both"})])
    return rows.groupby(["judge", "PPO is shown"], sort=False)["PPO wins"].mean().reset_index()


def judge_results(summary: pd.DataFrame, remedies: pd.DataFrame, expected, fitted: pd.DataFrame) -> dict[str, float]:
    """What 04_judge_bias reports: each judge's accuracy, what was planted and found, and the remedy."""
    found = summary.set_index(["judge", "statistic"])
    results: dict[str, float] = {}
    for judge in ("reward model", "fair", "planted"):
        results[f"accuracy_{judge.replace(' ', '_')}"] = found.loc[(judge, "accuracy"), "value"]
    for name in ("consistency", "first_share", "excess_length"):
        row = found.loc[("planted", name)]
        results |= {
            f"planted_{name}": row["value"],
            f"planted_{name}_low": row["low"],
            f"planted_{name}_high": row["high"],
        }
        results[f"planted_{name}_expected"] = getattr(expected, name)
    for term in ("position", "length"):
        results |= {
            f"fitted_{term}": fitted.loc[term, "value"],
            f"planted_{term}": fitted.loc[term, "planted"],
        }
    swapped = remedies[(remedies["judge"] == "planted") & (remedies["remedy"] == "swap")].set_index("statistic")[
        "value"
    ]
    results |= {"swap_coverage": swapped["coverage"], "swap_accuracy_covered": swapped["accuracy_covered"]}
    return {name: float(value) for name, value in results.items()}
