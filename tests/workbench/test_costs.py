"""What a run will need: counted by hand, by torch's own counter, and on the tensors of real runs."""

import importlib.util
import re

import pytest
import torch
from tiny import build_config, make_config, make_policy, make_scorer, sample, start
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lab import cli
from rlhf_lab.models import LoraConfig, SharedBase, response_logprobs, save_policy
from rlhf_lab.sandbox.world import World
from rlhf_lab.training.ppo import ppo_updates
from rlhf_lab.workbench.costs import plan, probe, weighing
from rlhf_lab.workbench.costs.cases import Case, whole_models
from rlhf_lab.workbench.costs.constants import CHECKED, TIMED, Constants, identity, keep_constants, read_constants
from rlhf_lab.workbench.costs.memory import Kept, Memory, Transient, kept, transient
from rlhf_lab.workbench.costs.named import Model, architecture
from rlhf_lab.workbench.costs.shapes import Shape, adapter_parameters, shape_of
from rlhf_lab.workbench.costs.stage_costs import ppo_roles
from rlhf_lab.workbench.costs.work import Update, forward, generation, training, update_work
from rlhf_lab.workbench.stages import PPOStage

BYTES = {"held": 5.0, "held_logits": 12.0, "passing": 3.0, "passing_logits": 5.0, "cached": 4.0, "stepping": 12.0}
MADE_UP = Constants(
    machine="here",
    threads=1,
    torch="2",
    code="",
    precision="fp32",
    seconds={phase: dict.fromkeys(kinds, 1e-9) for phase, kinds in TIMED.items()},
    bytes=BYTES | {"cast": 0.0},
    libraries=5e8,
)


@pytest.fixture(scope="module")
def sandbox() -> Shape:
    """The sandbox's base model: vocabulary 130, width 128, feed-forward 344, two layers, tied embeddings."""
    return shape_of(architecture(World.load("default").base_model))


def test_the_sandbox_model_by_hand(sandbox):
    layer = 4 * 128 * 128 + 3 * 128 * 344
    assert sandbox.matrix == 2 * layer == 395_264
    assert sandbox.parameters == 130 * 128 + 2 * (layer + 2 * 128) + 128 == 412_544
    assert sandbox.through == 2 * (4 * (128 + 128) + 3 * (128 + 344)) == 4_880
    assert sandbox.last == layer - 2 * 128 * 128  # all but keys and values
    assert sandbox[6:] == (128, 128, 128 * 130, 130, 128 * 344)  # queries, keys, head, outputs, largest


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_parameters_are_those_of_the_model_itself(architecture):
    config = build_config(architecture)
    assert shape_of(config).parameters == sum(p.numel() for p in make_policy(architecture).parameters())
    scorer = make_scorer(architecture)
    assert shape_of(config, outputs=1).parameters == sum(p.numel() for p in scorer.parameters())


def products(function) -> tuple[int, int]:
    """FLOPs by torch's counter: of the linear layers, and of batched products, which attention is made of."""
    with FlopCounterMode(display=False) as counter:
        function()
    by_kind = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    return by_kind["aten.mm"] + by_kind.get("aten.addmm", 0), by_kind["aten.bmm"]


def test_flops_are_those_that_torch_counts():
    policy, config = make_policy(attn_implementation="eager"), make_config(batch_size=8)
    batch = sample(policy, None, config, prompts=["w2 w3 w4"] * 8)
    rows, read = batch.response_ids.shape
    assert read > 2
    shape, length = shape_of(policy.config), 3 + read - 1
    once = forward(shape, rows, length, read)
    both = training(shape, rows, length, read)
    assert products(lambda: response_logprobs(policy, *batch[:4])) == (once.flops, once.attention)
    linear, batched = products(lambda: response_logprobs(policy, *batch[:4]).logp.sum().backward())
    assert linear == both.flops
    # here the weights of attention are kept, and its backward has four products for the two of the forward
    assert batched == 3 * once.attention


def test_the_last_layer_is_counted_where_it_is_read():
    policy, config = make_policy(), make_config(batch_size=8)
    batch = sample(policy, None, config, prompts=["w2 w3 w4"] * 8)
    mask = torch.ones_like(batch.response_mask)
    shape, length = shape_of(policy.config), 3 + mask.shape[1] - 1
    assert 0 < shape.last < shape.matrix
    with FlopCounterMode(display=False) as counter:
        response_logprobs(policy, *batch[:3], mask)
    by_kind = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    assert by_kind["aten.mm"] == forward(shape, *mask.shape[:1], length, mask.shape[1]).flops


def test_generation_is_the_prompt_and_a_step_for_each_further_token():
    """Two rows, three tokens of prompt, four of reply: steps that look back at 4, 5 and 6 tokens."""
    shape = Shape(parameters=1000, layers=2, width=8, matrix=600, last=200, through=90, queries=8, keys=4, head=80,
                  outputs=10, largest=80)  # fmt: skip
    work = generation(shape, 2, 3, 4)
    assert work.tokens == 2 * (3 + 3)
    assert work.kernels == 4 * (2 + 2)
    assert work.flops == 2 * 2 * 6 * 600 + 2 * 2 * 4 * 80
    assert work.attention == 4 * 2 * (3 * 3 + 4 + 5 + 6) * 2 * 8
    assert work.cached == 2 * 2 * (4 + 5 + 6) * 2 * 4
    assert work.logits == 2 * 4 * 10
    assert work.weights == 4 * 1000


def test_a_pass_that_is_kept_is_not_taken_again(sandbox):
    """Two epochs of a forward and a backward of two: of six forwards one is spared. Both models wait in memory."""
    roles = whole_models(sandbox, sandbox)
    plain, spared = (Update(16, 8, 8, 8, 2, 1, 16, 16, kept=how) for how in (False, True))
    assert update_work(roles, spared).train.flops == pytest.approx(update_work(roles, plain).train.flops * 5 / 6)
    assert update_work(roles, spared).score == update_work(roles, plain).score
    bytes_of = dict.fromkeys(("held", "held_logits", "passing", "passing_logits", "cached", "stepping", "cast"), 1.0)
    alone, together = (transient(roles, update, bytes_of) for update in (plain, spared))
    assert together.activations == 2 * alone.activations


def test_micro_batches_take_more_passes_and_no_more_flops(sandbox):
    roles = whole_models(sandbox, sandbox)
    whole, parts = (update_work(roles, Update(16, 8, 8, 8, 2, 2, micro, 16)).train for micro in (8, 3))
    assert parts.flops == pytest.approx(whole.flops)
    assert whole.kernels == 2 * (2 * 2) * (2 + 2)  # policy and critic, two epochs of two minibatches, layers and two
    assert parts.kernels == 3 * whole.kernels  # a minibatch of 8 in parts of 3
    assert parts.updated == whole.updated == 4 * 2 * sandbox.parameters


@pytest.fixture
def tiny_model(tmp_path) -> Model:
    """A language model on the disk."""
    from tiny import make_tokenizer

    path = str(tmp_path / "model")
    save_policy(path, make_policy(), make_tokenizer())
    return Model(architecture(path), path)


def held_by(state, *others) -> tuple[int, int, int]:
    """Bytes of the weights, gradients and moments of a run."""
    models = [state.policy, state.reference, state.critic, *others]
    weights = {p.data_ptr(): p for model in models for p in model.parameters()}.values()
    moments = [value for kept in state.optimizer.state.values() for value in kept.values() if value.dim()]
    of = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return of(weights), of(p.grad for p in weights if p.grad is not None), of(moments)


@pytest.mark.parametrize("mode", ["four models", "adapters", "shared trunk"])
def test_what_roles_keep_is_what_a_run_keeps(tiny_model, mode):
    from rlhf_lab.models import load_policy, load_scorer, shared_scorer

    settings, path = {"policy": tiny_model.tokenizer, "reward": tiny_model.tokenizer}, tiny_model.tokenizer
    if mode == "adapters":
        lora, base = LoraConfig(rank=2, alpha=4), SharedBase(path)
        settings |= {"lora": lora.model_dump(), "reward": "{reward_model}"}
        models = {"policy": base.policy(lora), "reference": base.reference(), "critic": base.scorer(lora)}
        reward = base.scorer(lora, name="reward", head="new").requires_grad_(False)
    else:
        policy = load_policy(path)
        models = {"policy": policy, "reference": load_policy(path, trainable=False)}
        models["critic"] = shared_scorer(path, policy) if mode == "shared trunk" else load_scorer(path, head="zero")
        settings |= {"critic": "shared"} if mode == "shared trunk" else {}
        reward = load_scorer(path, trainable=False)
    state = start(make_config(updates=1), **models)
    assert len(list(ppo_updates(state))) == 1
    earlier = {"reward_model": tiny_model._replace(adapter=True)}
    roles = kept(ppo_roles(PPOStage(**settings), tiny_model, earlier))
    weights, gradients, moments = held_by(state, reward)
    assert sum(role.weights for role in roles.values()) == weights
    assert sum(role.moments for role in roles.values()) == moments
    # models of their own learn one after the other, so that the critic's gradients are left
    learned = roles.values() if mode == "shared trunk" else [roles["critic"]]
    assert sum(role.gradients for role in learned) == gradients


def test_an_adapter_has_rank_times_ins_and_outs(tiny_model):
    base = SharedBase(tiny_model.tokenizer)
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        lora = LoraConfig(rank=3, alpha=3, targets=targets)
        policy = base.policy(lora, name=f"policy {targets}")
        assert adapter_parameters(tiny_model.config, lora) == sum(p.numel() for p in policy.parameters())


def test_more_of_anything_takes_longer_and_more_memory():
    def need(case: Case) -> tuple[float, float]:
        roles, update = case.roles(), case.update
        memory = Memory(5e8, kept(roles), transient(roles, update, MADE_UP.bytes))
        return sum(MADE_UP.times(update_work(roles, update)).values()), memory.peak

    case = Case(32, 2, 500, 8, 8, 8)
    for more in ({"width": 64}, {"layers": 3}, {"vocabulary": 600}, {"replies": 9}, {"prompt": 9}, {"reply": 9}):
        assert all(a > b for a, b in zip(need(case._replace(**more)), need(case), strict=True)), more
    assert need(case._replace(micro=4))[1] < need(case)[1]


def test_the_worst_moment_is_one_of_learning_stepping_scoring_and_sampling():
    """Weights 10 and 2, gradients 4, moments 8. In learning they come as activations go; the rest finds them there."""
    memory = Memory(100, {"policy": Kept(10, 4, 8), "reward": Kept(2, 0, 0)}, transient_of())
    assert memory.tensors == 12 + 8 + max(5 + 6, 4 + 3)
    assert memory.peak == pytest.approx(100 + 1.1 * memory.tensors)
    assert memory._replace(transient=transient_of(cache=9.0)).tensors == 12 + 8 + 4 + 9


def transient_of(**changes):
    """Activations 5, logits 6, and little else."""
    return Transient(**{"activations": 5.0, "logits": 6.0, "scoring": 1.0, "cache": 2.0, "stepping": 3.0} | changes)


def test_the_fit_finds_the_constants_that_made_the_times():
    true = {"kernels": 2e-5, "flops": 1e-11, "attention": 3e-11, "elements": 0.0, "logits": 4e-9, "weights": 1e-10}
    true |= {"updated": 2e-9}
    works = [update_work(case.roles(), case.update) for case in probe.TIMES]
    took = [{"train": sum(each * getattr(work.train, kind) for kind, each in true.items())} for work in works]
    found = probe.fit("train", list(zip(works, took, strict=True)))
    assert found == pytest.approx(true, rel=1e-6, abs=1e-14)


def test_bytes_are_counted_at_their_most():
    def work() -> None:
        one = torch.ones(1000, 1000)
        del one
        two = torch.ones(500, 1000), torch.ones(750, 1000)
        del two

    assert weighing.allocated(work) == pytest.approx(5e6, rel=1e-3)


def test_memory_as_predicted_is_what_another_update_allocates():
    constants = weighing.weigh("fp32")
    for case in (Case(48, 3, 300, 12, 10, 20), Case(64, 2, 4000, 8, 4, 12, micro=2)):
        roles = case.roles()
        keeps, comes = kept(roles), transient(roles, case.update, constants)
        learning = Memory(0, keeps, comes._replace(scoring=0, cache=0)).tensors
        learning -= sum(part.weights + part.moments for part in keeps.values())
        real = weighing.weighed(case, "fp32")
        assert learning == pytest.approx(real.learning, rel=0.25)
        if not case.micro:
            assert comes.scoring == pytest.approx(real.reading, rel=0.25)


def test_constants_are_kept_for_a_machine_and_its_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = MADE_UP.model_copy(update=identity("fp32"))
    assert read_constants("fp32") is None
    keep_constants(mine)
    assert read_constants("fp32") == mine
    assert read_constants("bf16") is None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert read_constants("fp32") is None
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def planned(repo, monkeypatch, capsys):
    """The output of `rlhf-lab plan` for the quickstart, by made-up constants."""

    def run(*words: str, **changes) -> str:
        monkeypatch.setattr(plan, "read_constants", lambda precision: MADE_UP.model_copy(update=changes))
        assert cli.main(["plan", str(repo / "experiments" / "quickstart.yaml"), *words]) == 0
        return capsys.readouterr().out

    return run


def test_plan_of_the_quickstart(planned):
    out = planned("--prompt-tokens", "20", "--reply-tokens", "30")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "384,000 " in next(line for line in out.splitlines() if line.startswith("ppo "))  # 60 * 128 * (20 + 30)
    assert "150,000 " in next(line for line in out.splitlines() if line.startswith("sft "))  # 3 * 1000 * 50
    # 1.65 MB of weights, as much of gradients and twice that of moments
    assert re.search(r"policy +1\.7 MB +1\.7 MB +3\.3 MB", out)
    assert re.search(r"reference +1\.7 MB +0\.0 MB +0\.0 MB", out)
    assert "not planned: judge_bias" in out
    assert "inside of what was measured" in rows["inside"]
    assert "WARNING" not in out


def test_plan_says_that_it_extrapolates_and_what_does_not_fit(planned):
    out = planned("-p", "ppo.batch_size=4096", libraries=1e15)
    assert "EXTRAPOLATES beyond what was measured: ppo: replies 4,096 (checked 8 to 128)" in out
    assert out.count("WARNING") == 3
    assert "replies of 40 (the longest" in out
    assert planned().count("and so not compared: sft, reward_model\n") == 1
    for words, changes in ((("-p", "ppo.critic=shared"), {}), ((), {"precision": "bf16"})):
        assert "and so not compared: sft, reward_model, ppo\n" in planned(*words, **changes)


def test_plan_of_every_stage_that_trains(repo, monkeypatch, capsys):
    monkeypatch.setattr(plan, "read_constants", lambda precision: MADE_UP)
    assert cli.main(["plan", str(repo / "experiments" / "smoke.yaml"), "-p", "precision=fp32"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"pretrain +16,384 ", out)  # 4 steps of 4,096
    assert "EXTRAPOLATES beyond what was measured: pretrain: width 32" in out
    assert "and so not compared: pretrain, sft, reward_model\n" in out


def test_plan_of_data_of_ones_own(repo, tmp_path, monkeypatch, capsys):
    """Rows are of two replies, rankings of as many as `k` says; a prompt fills what a reply leaves."""
    monkeypatch.setattr(plan, "read_constants", lambda precision: MADE_UP)

    def told(recipe: str, *changes: str) -> str:
        file, model = repo / "experiments" / "recipes" / f"{recipe}.yaml", World.load("default").base_model
        words = [word for change in (f"sft.model={model}", *changes) for word in ("-p", change)]
        assert cli.main(["plan", str(file), *words]) == 0
        return capsys.readouterr().out

    out = told("smollm_nectar")
    assert "8000 prompts with 7 replies, texts of 512 tokens" in out
    assert "ppo: prompts of 384 tokens (max_length less a reply" in out
    assert "20000 prompts with 2 replies" in told("pythia_hh")
    rankings = tmp_path / "rankings.jsonl"
    rankings.write_text('{"prompt": "a", "completions": ["b", "c", "d"], "ranks": [0, 1, 2]}\n')
    assert "20000 prompts with 3 replies" in told(
        "pythia_hh", f"reward_model.preferences={rankings}", "reward_model.k=3"
    )


def test_plan_of_what_cannot_be_found_is_one_line(repo, capsys, monkeypatch):
    monkeypatch.setattr(plan, "read_constants", lambda precision: MADE_UP)
    file = str(repo / "experiments" / "quickstart.yaml")
    assert cli.main(["plan", file, "-p", "sft.model=/nowhere/model"]) == 2
    assert "stage sft: /nowhere/model: no such directory" in capsys.readouterr().err
    assert cli.main(["plan", file, "--reply-tokens", "0"]) == 2
    assert "must be 1 or more" in capsys.readouterr().err


def test_the_benchmark_measures_the_range_that_is_called_checked(repo):
    spec = importlib.util.spec_from_file_location("growth", repo / "benchmarks" / "growth.py")
    growth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(growth)
    cases = [point.case for point in growth.points(few=False)]
    fields = {name: name.removesuffix(" tokens") for name in CHECKED}
    for name, field in fields.items():
        values = [getattr(case, field) for case in cases]
        assert CHECKED[name] == (min(values), max(values)), name
    assert not {point.case for point in growth.points(few=False)} & set(probe.TIMES)
