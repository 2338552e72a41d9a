"""Install torch before the rest: its CPU build where there is no NVIDIA driver. Standard library only.

`make` runs this file as a script in a new environment, before the package itself is installed. On Linux,
pip's index serves torch with CUDA, which is gigabytes; PyTorch's CPU index serves a tenth of it.

    python install_torch.py constraints.txt      (TORCH_INDEX chooses another index, "" none)
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5.0  # seconds for an index to answer
REST_MB = 280  # everything but torch
CPU_MB, CUDA_MB, OTHER_MB = 190, 2600, 90  # torch for Linux without and with CUDA, and for macOS or Windows


def main(arguments: Sequence[str]) -> int:
    """Say how much will be downloaded, and install torch from the CPU index where that is right."""
    version = pinned(Path(arguments[0]).read_text(encoding="utf-8"))
    if installed(version):
        print(f"torch {version} is there; about {REST_MB} MB to download at most")
        return 0
    if sys.platform != "linux":
        print(f"about {OTHER_MB + REST_MB} MB to download")
        return 0
    if has_nvidia_driver():
        print(f"NVIDIA driver found: torch with CUDA, about {CUDA_MB + REST_MB} MB to download")
        return 0
    index = os.environ.get("TORCH_INDEX", CPU_INDEX)
    size = wheel_megabytes(index, version) if index else None
    if size is not None:
        print(f"torch for CPUs from {index}; about {size + REST_MB} MB to download", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--index-url", index]
        if subprocess.run([*pip, f"torch=={version}"]).returncode == 0:
            return 0
    reason = f"{index} does not serve torch {version} for this machine" if index else "TORCH_INDEX is empty"
    print(
        f"{reason}: it comes from where pip looks. About {CUDA_MB + REST_MB} MB to download if that is PyPI "
        f"(torch with CUDA), {CPU_MB + REST_MB} MB if it serves torch for CPUs"
    )
    return 0


def pinned(constraints: str) -> str:
    """The version of torch in a constraints file."""
    return re.search(r"^torch==([^\s;#]+)", constraints, flags=re.MULTILINE)[1]


def installed(version: str) -> bool:
    """Whether this environment has that torch, whatever its build."""
    try:
        return importlib.metadata.version("torch").split("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return False


def has_nvidia_driver() -> bool:
    """Whether nvidia-smi is there and finds a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def wheel_megabytes(index: str, version: str, patience: float = PATIENCE) -> int | None:
    """The size of torch's wheel for this interpreter on a package index; None when it does not serve one.

    The wheel itself is asked for as well: an index may list what its file server does not give.
    """
    page = f"{index.rstrip('/')}/torch/"
    try:
        with urllib.request.urlopen(page, timeout=patience) as answer:
            wheel = find_wheel(answer.read().decode("utf-8", "replace"), version)
            base = answer.url
        if wheel is None:
            return None
        request = urllib.request.Request(urllib.parse.urljoin(base, wheel), method="HEAD")
        with urllib.request.urlopen(request, timeout=patience) as answer:
            length = answer.headers.get("Content-Length")
        return round(int(length) / 1e6) if length else CPU_MB
    except (OSError, ValueError):  # OSError covers URLError, time-outs and refused connections
        return None


def find_wheel(page: str, version: str, tag: str = "", machine: str = "") -> str | None:
    """The address of the wheel for an interpreter (tag "cp311") and a machine ("x86_64") on an index page."""
    tag = tag or f"cp{sys.version_info[0]}{sys.version_info[1]}"
    machine = machine or platform.machine()
    name = rf"torch-{re.escape(version)}(?:(?:\+|%2B)[\w.]+)?-{tag}-{tag}-[\w.]*linux[\w.]*_{machine}\.whl"
    for address in re.findall(r'href="([^"]+)"', page):
        if re.search(rf"(?:^|/){name}(?:#|$)", address):
            return address.split("#")[0]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
