"""The three descriptions of the environment agree, and torch comes from the right place."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from rlhf_lab.workbench import install_torch


@pytest.fixture(scope="module")
def project(repo):
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repo):
    """Name -> version in constraints.txt."""
    lines = (repo / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every constraint is name==version"
    names = [canonicalize_name(name) for name, _ in pairs]
    assert len(names) == len(set(names))
    return dict(zip(names, [Version(version.strip()) for _, version in pairs], strict=True))


def test_every_dependency_is_pinned_within_its_range(project, pins):
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, wanted):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} is pinned to {pin}"


def test_pins_fit_each_other_and_no_build_is_forced(pins):
    """What the pinned packages ask of each other, as their metadata tells it, holds for the pins."""
    assert all(pin.local is None for pin in pins.values()), "a pin like 2.13.0+cpu breaks GPU and Mac users"
    for name, pin in pins.items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(found.version).public != pin.public:
            continue  # this environment was not made from the constraints
        for requirement in map(Requirement, found.requires or []):
            asked = canonicalize_name(requirement.name)
            if asked in pins and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert requirement.specifier.contains(pins[asked], prereleases=True), f"{name} needs {requirement}"


def test_the_conda_environment_installs_this_package_with_these_constraints(repo, project):
    environment = yaml.safe_load((repo / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [re.split("[=<> ]", entry)[0] for entry in plain] == ["python", "pip"]  # and nothing else
    python = plain[0].partition("=")[2]
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.5")
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert "dev" in project["optional-dependencies"]
    assert (repo / "constraints.txt").is_file()


def test_the_makefile_and_the_package_agree_on_python(repo, project):
    makefile = (repo / "Makefile").read_text()
    low, high = re.search(r"\((\d, \d+)\) <= sys.version_info\[:2\] <= \((\d, \d+)\)", makefile).groups()
    low, high = (".".join(version.split(", ")) for version in (low, high))
    allowed = SpecifierSet(project["requires-python"])
    minors = [f"3.{minor}" for minor in range(8, 20) if allowed.contains(f"3.{minor}.1")]
    assert (minors[0], minors[-1]) == (low, high)


# ------------------------------------------------------------------------------------------------ torch

PAGE = """<a href="/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_aarch64.whl#sha256=1">x</a>
<a href="/whl/torch-2.13.0%2Bcpu-cp311-cp311-win_amd64.whl">x</a>
<a href="/whl/torch-2.13.0%2Bcpu-cp313-cp313t-manylinux_2_28_x86_64.whl">x</a>
<a href="/whl/torch-2.12.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl">x</a>
<a href="/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256=2">x</a>
<a href="torch-2.13.0-cp312-cp312-linux_x86_64.whl">x</a>"""


@pytest.mark.parametrize(
    ("version", "tag", "machine", "address"),
    [
        ("2.13.0", "cp311", "x86_64", "/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"),
        ("2.13.0", "cp311", "aarch64", "/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_aarch64.whl"),
        ("2.12.0", "cp311", "x86_64", "/whl/torch-2.12.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"),
        ("2.13.0", "cp312", "x86_64", "torch-2.13.0-cp312-cp312-linux_x86_64.whl"),
        ("2.13.0", "cp313", "x86_64", None),  # only the free-threaded build is there
        ("2.1.0", "cp311", "x86_64", None),
    ],
)
def test_the_wheel_for_this_interpreter_is_found(version, tag, machine, address):
    assert install_torch.find_wheel(PAGE, version, tag, machine) == address


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that lists a wheel, and serves it as `mode` says."""

    def do_GET(self):
        if self.server.mode == "silent":
            threading.Event().wait(2.0)
        wheel = f"torch-9.9.9%2Bcpu-{self.server.tag}-{self.server.tag}-manylinux_2_28_{self.server.machine}.whl"
        page = f'<a href="../files/{wheel}">x</a>'.encode()
        self.send_response(200 if self.path == "/cpu/torch/" else 404)
        self.end_headers()
        self.wfile.write(page if self.path == "/cpu/torch/" else b"")

    def do_HEAD(self):
        there = self.server.mode == "serves" and self.path.startswith("/cpu/files/torch-9.9.9")
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", "191794682")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def index():
    """Starts an index in a given mode; its address."""
    import platform

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.handle_error = lambda *_: None  # a client that gave up waiting
    server.tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    server.machine = platform.machine()
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(mode):
        server.mode = mode
        return f"http://127.0.0.1:{server.server_port}/cpu"

    yield start
    server.shutdown()
    server.server_close()


def test_an_index_counts_only_when_it_serves_the_wheel(index, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    size = functools.partial(install_torch.wheel_megabytes, patience=0.5)
    address = index("serves")
    assert size(address, "9.9.9") == 192
    assert size(address + "/", "9.9.9") == 192
    assert size(address, "9.9.8") is None  # another version
    assert size(address + "/elsewhere", "9.9.9") is None  # no such page
    assert size(index("lists"), "9.9.9") is None  # listed, but the file is not there
    assert size(index("silent"), "9.9.9") is None  # no answer in time
    assert size("http://127.0.0.1:9/cpu", "9.9.9") is None  # nobody there


@pytest.mark.skipif(sys.platform != "linux", reason="the rule is for Linux")
def test_where_torch_comes_from_is_said_beforehand(index, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==1.0\ntorch==9.9.9  # a comment\n")
    ran = []

    def pip(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install_torch, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(install_torch.subprocess, "run", pip)

    monkeypatch.setenv("TORCH_INDEX", index("serves"))
    assert install_torch.main([str(constraints)]) == 0
    assert "about 472 MB to download" in capfd.readouterr().out
    assert ran[0][-3:] == ["--index-url", os.environ["TORCH_INDEX"], "torch==9.9.9"]

    for unavailable in (index("lists"), ""):
        monkeypatch.setenv("TORCH_INDEX", unavailable)
        assert install_torch.main([str(constraints)]) == 0
        assert "it comes from where pip looks. About 2880 MB" in capfd.readouterr().out

    monkeypatch.setattr(install_torch, "has_nvidia_driver", lambda: True)
    assert install_torch.main([str(constraints)]) == 0
    assert "torch with CUDA, about 2880 MB" in capfd.readouterr().out
    constraints.write_text(f"torch=={metadata.version('torch').split('+')[0]}\n")
    assert install_torch.main([str(constraints)]) == 0
    assert "is there" in capfd.readouterr().out
    assert len(ran) == 1  # pip was called where the index serves the wheel, and nowhere else
