"""Lineage: three runs that take from each other, by the real wandb, sent to a small server of our own."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlhf_lab.config import Config
from rlhf_lab.workbench import lineage
from rlhf_lab.workbench.comparing.wandb_files import read_wandb
from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.records import mark_queued
from rlhf_lab.workbench.runs import Run

BODY = """
import os, sys
from pathlib import Path
from rlhf_lab.config import Config
from rlhf_lab.workbench.experiments.taken import note_taken
from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.records import mark_queued
from rlhf_lab.workbench.runs import Run
from rlhf_lab.workbench.writing import write_json

class Stage(Config):
    policy: str = "auto"
    reward: dict = {}
    prompts: str = "sandbox"
    critic: str = "hub/model"
    experiment: str = "chain"

def leave(run, kind, weights):
    run.file(f"{kind}/model.safetensors").write_bytes(weights)
    run.file(f"{kind}/config.json").write_text("{}")

Path("my prompts.jsonl").write_text("{}")
Path("rewards.py").write_text("def polite(): pass")
sft = Run.start("sft", Stage(), experiment="chain", run_dir="runs/a sweep/sft/one")
sft.file("data/demonstrations.jsonl").write_text("demonstrations")
leave(sft, "checkpoint", b"sft" * 1000)
sft.finish()
mark_queued(Path("runs/two"), stage="reward_model", experiment="chain")
write_json(Path("runs/two/made_from.json"), {"point": {"reward_model.lr": 0.01, "seed": 3}})
scorer = Run.start("reward_model", Stage(), experiment="chain", run_dir="runs/two")
note_taken("auto", "sft", ["chain", None], 0, sft.path)
scorer.file("data/comparisons.jsonl").write_text("comparisons")
leave(scorer, "checkpoint", b"reward" * 1000)
scorer.finish()
settings = Stage(policy="runs/a sweep/sft/one/checkpoint", reward={"runs/two": 1.0, "rewards.py:polite": 0.5},
                 prompts="my prompts.jsonl")
ppo = Run.start("ppo", settings, experiment="chain", run_dir="runs/three")
leave(ppo, "checkpoint", b"ppo" * 1000)
leave(ppo, "training", b"the optimizer's")
for episode in (64, 128):
    ppo.log({"objective/kl": 1.0}, step=episode)
    ppo.log_samples([{"prompt": "p", "reply": f"at {episode}"}], step=episode)
ppo.finish()
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    env = clean(folder) | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", BODY], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def clean(folder):
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return env | {"HOME": str(folder / "home"), "RLHF_LAB_HEADLESS": "1"}


RUNS = ("runs/a sweep/sft/one", "runs/two", "runs/three")


class Server(http.server.BaseHTTPRequestHandler):
    """What `wandb sync` asks for. Artifacts of one name and digest are one, as wandb says of its own server."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, dict]]
    files: dict[str, bytes]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path == "/graphql":
            query = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])[1]
            values = query.get("variables") or {}
            self.asked.append((name, values))
            answer = {"data": self.answer(name, values)}
        else:
            before = b"" if self.command == "PUT" else self.files.get(self.path, b"")
            self.files[self.path] = before + body
        reply = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_PUT = do_GET = do_POST

    def answer(self, name, values):
        values = values.get("input") or values
        if name == "UpsertBucket":
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "r", "name": values["name"], "displayName": "", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if name == "CreateArtifact":
            same = f"{values['artifactCollectionName']}:{values['digest']}"
            state = "COMMITTED" if ("CommitArtifact", {"artifactID": same}) in self.asked else "PENDING"
            made = {"id": same, "state": state, "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateArtifactManifest":
            file = self.upload(f"manifest/{values['artifactID']}")
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if name == "CreateArtifactFiles":
            asked = values["artifactFiles"]
            nodes = [{"node": self.upload(file["name"]) | {"artifact": {"id": file["artifactID"]}}} for file in asked]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": ""}}}
        if name == "UseArtifact":
            used = {"id": values["artifactID"], "digest": "", "state": "COMMITTED", "createdAt": "", "metadata": "{}"}
            return {"useArtifact": {"artifact": used | {"description": ""}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": self.upload(file)["uploadUrl"]} for file in values["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"project": None} if name == "ArtifactType" else {}

    def upload(self, name):
        url = f"http://127.0.0.1:{self.server.server_port}/upload/{name}"
        file = {"id": "f", "name": name, "displayName": name, "uploadUrl": url, "uploadHeaders": []}
        return file | {"storagePath": "", "uploadMultipartUrls": None}

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(folder):
    """The server's record of what it was asked, and the environment in which wandb finds it."""
    handler = type("Recording", (Server,), {"asked": [], "files": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *args: None  # a client that hangs up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield handler, clean(folder) | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address}
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def synced(chain):
    """What reaches the server when `wandb sync` sends the runs one after the other."""
    with serving(chain) as (handler, env):
        for run in RUNS:
            (directory,) = (chain / run / "wandb").glob("offline-run-*")
            command = [sys.executable, "-m", "wandb", "sync", "--yes", str(directory)]
            done = subprocess.run(command, cwd=chain, env=env, capture_output=True, text=True, timeout=120)
            assert (done.returncode, done.stderr.count("Finished syncing")) == (0, 1), done.stderr
    return handler


def names(links):
    return {name for name, _ in (link.split(":") for link in links)}


@pytest.mark.slow
def test_the_server_is_told_who_made_and_who_took(chain, synced):
    ids = {run: read_wandb(chain / run / "wandb")[0].id for run in RUNS}
    made, taken = {run: set() for run in RUNS}, {run: set() for run in RUNS}
    of = {run_id: run for run, run_id in ids.items()}
    for name, values in synced.asked:
        values = values.get("input", values)
        if name == "CreateArtifact" and values["runName"] and values["artifactTypeName"] != "run_table":
            made[of[values["runName"]]].add(f"{values['artifactCollectionName']}:{values['digest']}")
        if name == "UseArtifact":
            taken[of[values["runName"]]].add(values["artifactID"])
    sft, scorer, ppo = RUNS
    assert [names(made[run]) for run in RUNS] == [{"chain-sft"}, {"chain-reward_model"}, {"chain-ppo"}]
    assert names(taken[sft]) == {"chain-sft-data"}
    assert names(taken[scorer]) == {"chain-sft", "chain-reward_model-data"}
    assert names(taken[ppo]) == {"chain-sft", "chain-reward_model", "my-prompts", "rewards"}
    # the same version, not only the same name: this is what draws the line
    assert made[sft] < taken[scorer]
    assert made[sft] | made[scorer] < taken[ppo]


@pytest.mark.slow
def test_artifacts_hold_references_and_checksums_and_no_copies(chain, synced):
    (manifest,) = [json.loads(body) for path, body in synced.files.items() if "/manifest/chain-reward_model:" in path]
    weights = chain / "runs/two/checkpoint/model.safetensors"
    entry = manifest["contents"]["model.safetensors"]
    assert entry["digest"] == base64.b64encode(hashlib.md5(weights.read_bytes()).digest()).decode()
    assert entry["ref"] == weights.as_uri()
    assert entry["size"] == 6000
    assert set(manifest["contents"]) == {"model.safetensors", "config.json"}
    copies = [path for path in chain.rglob("*") if path.is_file() and path.read_bytes() == weights.read_bytes()]
    assert copies == [weights]
    assert not list((chain / "home").rglob("staging/*"))


@pytest.mark.slow
def test_versions_are_named_after_the_runs_that_made_them(synced):
    aliases = {}
    for name, values in synced.asked:
        if name == "CreateArtifact" and values["input"]["runName"]:
            given = values["input"]["aliases"]
            aliases[values["input"]["artifactCollectionName"]] = {alias["alias"] for alias in given}
    assert aliases["chain-sft"] == {"latest", "one"}
    assert aliases["chain-ppo"] == {"latest", "three"}


@pytest.mark.slow
def test_history_config_and_tables_reach_the_server(synced):
    sent = b"".join(body for path, body in synced.files.items() if path.endswith("/file_stream")).decode()
    assert r"\"objective/kl\":1" in sent
    tables = [body.decode() for path, body in synced.files.items() if "media/table/samples" in path]
    assert sorted(json.loads(table)["data"] for table in tables) == [[[64, "p", "at 64"]], [[128, "p", "at 128"]]]


@pytest.mark.slow
def test_online_the_same_is_told_at_once(tmp_path):
    with serving(tmp_path) as (handler, env):
        env["WANDB_MODE"] = "online"
        done = subprocess.run(
            [sys.executable, "-c", BODY], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stdout
    used = {values["input"]["artifactID"] for name, values in handler.asked if name == "UseArtifact"}
    assert {"chain-sft", "chain-reward_model", "chain-reward_model-data", "my-prompts"} < names(used)


def test_what_was_made_and_taken_is_in_the_file(chain):
    """As wandb's own reader sees it: made artifacts are logged, taken ones are to be used; all by reference."""
    (file,) = (chain / "runs/three/wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"this wandb cannot read its files back: {done.stderr.strip()[:100]}")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    found = {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}
    found = {name: artifact for name, artifact in found.items() if artifact["type"] != "run_table"}
    assert {name: artifact["type"] for name, artifact in found.items()} == {
        "chain-sft": "model",
        "chain-reward_model": "model",
        "my-prompts": "dataset",
        "rewards": "code",
        "chain-ppo": "model",
    }
    assert {name for name, artifact in found.items() if not artifact.get("use_after_commit")} == {"chain-ppo"}
    weights = chain / "runs/a sweep/sft/one/checkpoint/model.safetensors"
    (entry,) = [each for each in found["chain-sft"]["manifest"]["contents"] if each["path"] == weights.name]
    assert entry == {
        "path": weights.name,
        "ref": weights.as_uri(),
        "digest": base64.b64encode(hashlib.md5(weights.read_bytes()).digest()).decode(),
        "size": "3000",
    }


def test_groups_job_types_tags_and_tables_are_in_the_files(chain):
    runs = [read_wandb(chain / run / "wandb")[0] for run in RUNS]
    assert [(run.group, run.job_type) for run in runs] == [
        ("chain", "sft"),
        ("chain", "reward_model"),
        ("chain", "ppo"),
    ]
    commit = runs[0].config["run"]["git"]
    expected = {f"git-{commit['commit'][:7]}" + "-dirty" * commit["dirty"]} if commit else set()
    assert set(runs[0].tags) == expected
    assert set(runs[1].tags) == expected | {"reward_model.lr=0.01", "seed=3"}
    assert runs[2].samples["samples"][["episode", "reply"]].values.tolist() == [[64, "at 64"], [128, "at 128"]]


def test_the_suggested_panels_show_metrics_that_exist(repo):
    workspace = (
        (repo / "docs/wandb.md").read_text(encoding="utf-8").partition("## A workspace")[2].partition("\n## ")[0]
    )
    named = set(re.findall(r"`([a-z]+/[a-z_]+)`", workspace))
    assert len(named) > 20
    assert named <= GLOSSARY.keys()


# --- without wandb


class Stage(Config):
    value: object = None


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark_queued(Path("one"), stage="sft", experiment="my sweep")
    for name in (
        "checkpoint/config.json",
        "training/5/model.safetensors",
        "data/a.jsonl",
        "verdicts.csv",
        "report.html",
    ):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text("{}")
    return Path("one")


@pytest.mark.parametrize(
    ("path", "name", "kind", "whole"),
    [
        ("one", "my-sweep-sft", "model", "one/checkpoint"),
        ("one/checkpoint", "my-sweep-sft", "model", "one/checkpoint"),
        ("one/checkpoint/config.json", "my-sweep-sft", "model", "one/checkpoint"),
        ("one/training/5", "my-sweep-sft-training", "model", "one/training"),
        ("one/data/a.jsonl", "my-sweep-sft-data", "dataset", "one/data"),
        ("one/verdicts.csv", "my-sweep-sft-verdicts", "dataset", "one/verdicts.csv"),
    ],
)
def test_a_path_in_a_run_is_named_after_the_run(run_dir, path, name, kind, whole):
    found = lineage.artefact(Path(path))
    assert (found.name, found.type, found.path, found.alias) == (name, kind, Path(whole).resolve(), "one")


def test_other_paths_have_their_own_names(run_dir):
    Path("my model").mkdir()
    assert lineage.artefact(Path("my model")) is None  # an empty folder
    Path("my model/config.json").write_text("{}")
    Path("mine.py").write_text("")
    Path("default").mkdir()
    Path("default/x").write_text("")
    settings = {
        "a": ["my model", {"mine.py:polite": 1.0}, "gold", "", ".", "x" * 5000, "nul\0", "~nobody/x", 3],
        "sandbox": "default",  # the name of a world, and by chance of a folder
        "run_dir": "one",
        "run": {"directory": "one"},
    }
    found = lineage.taken_by(Path("one"), settings)
    assert [(each.name, each.type) for each in found] == [
        ("my-model", "model"),
        ("mine", "code"),
        ("my-sweep-sft-data", "dataset"),
    ]
    assert [each.name for each in lineage.made_by(Path("one"))] == ["my-sweep-sft", "my-sweep-sft-verdicts"]


class Refusing:
    """A wandb run that takes no artifacts, as another version of wandb might."""

    def __init__(self):
        self.summary, self.ended = {}, None

    def finish(self, exit_code):
        self.ended = exit_code


def test_lineage_that_fails_costs_one_line_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = Run.start("ppo", Stage(), run_dir=tmp_path / "one")
    run.file("data/a.jsonl").write_text("{}")
    run.tracker._run = theirs = Refusing()
    capsys.readouterr()
    run.finish({"gold": 1.0})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb")]
    assert line.startswith("wandb could not log the lineage ('Refusing' object has no attribute '_log_artifact'")
    assert (theirs.summary, theirs.ended) == ({"gold": 1.0}, 0)
