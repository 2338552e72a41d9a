"""What may be wrong with an installation: one line per check, and what to do where something is."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from rlhf_lab.workbench.records import runs_root

FREE_GB = 3.0  # below this a run with checkpoints may fill the disk
PACKAGES = ("rlhf-lab", "torch", "transformers", "trl", "datasets", "papermill", "wandb", "jupyterlab")


class Check(NamedTuple):
    """One thing looked at. `advice` says what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Look at everything a run needs. Changes nothing, asks no network, and shows no key."""
    checks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _torch,
        _threads,
        _bf16,
        _gpu,
        _kernel,
        _filter,
        _wandb,
        _runs,
        _disk,
    ]
    return [_safely(check) for check in checks]


def told(checks: list[Check]) -> list[str]:
    """The checks as lines of text."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        advice = f"  -> {check.advice}" if check.advice and not check.ok else ""
        lines.append(f"{'ok  ' if check.ok else 'warn'}  {check.name.ljust(width)}  {check.found}{advice}")
    return lines


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        name = check.__name__.strip("_")
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name, False, text, "install again, in a new environment")


def _python() -> Check:
    found = f"{platform.python_version()} in {sys.prefix}"
    return Check("python", (3, 11) <= sys.version_info < (3, 14), found, "use Python 3.11, 3.12 or 3.13")


def _packages() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check("packages", not missing, text, "pip install -e '.[dev]' -c constraints.txt")


def _torch() -> Check:
    import torch

    cuda = torch.version.cuda
    build = f"CUDA {cuda}" if cuda else "CPU"
    idle = bool(cuda) and not torch.cuda.is_available()
    found = f"{torch.__version__}, {build} build" + (", and no GPU it can use" if idle else "")
    return Check("torch", not idle, found, "it works; the CPU build would save some gigabytes")


def _threads() -> Check:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"torch takes {threads} of {cores} cores"
    return Check("threads", threads <= cores, found, f"set OMP_NUM_THREADS={cores}")


def _bf16() -> Check:

    from rlhf_lab.models.precision import WORTHWHILE, has_native_bf16, speedup

    if not has_native_bf16("cpu"):
        return Check("bf16", True, "not native here: precision auto takes fp32")
    ratio = speedup()
    use = "bf16" if ratio >= WORTHWHILE else "fp32"
    return Check("bf16", True, f"native, {ratio:.1f} times the speed of fp32: precision auto takes {use}")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("gpu", True, f"{names}; computes where RLHF_LAB_DEVICE=cuda is set")
    if shutil.which("nvidia-smi"):
        advice = "install torch's CUDA build: pip install --force-reinstall torch -c constraints.txt"
        return Check("gpu", False, "an NVIDIA driver, but torch cannot use it", advice)
    return Check("gpu", True, "none; everything in the quickstart runs on the processor")


def _kernel() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    if importlib.util.find_spec("ipykernel") is None:
        return Check("kernel", False, "ipykernel is missing", "pip install -e '.[dev]' -c constraints.txt")
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return Check("kernel", False, "no kernel 'python3' for JupyterLab", "make lab")
    # Jupyter starts a bare "python" as the interpreter it runs in itself
    program = sys.executable if spec.argv[0] in ("python", "python3") else spec.argv[0]
    ours = Path(program).absolute() == Path(sys.executable).absolute()
    advice = "start JupyterLab by `make lab`, or python -m ipykernel install --sys-prefix"
    return Check("kernel", ours, f"'python3' runs {program}", advice)


def _filter() -> Check:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return Check("nbstripout", True, "no git checkout: nothing to keep clean")
    done = subprocess.run(["git", "config", "filter.nbstripout.clean"], cwd=root, capture_output=True, text=True)
    if done.stdout.strip():
        return Check("nbstripout", True, "git keeps outputs out of commits")
    return Check("nbstripout", False, "git would commit notebooks with their outputs", "make lab installs the filter")


def _wandb() -> Check:
    if importlib.util.find_spec("wandb") is None:
        return Check("wandb", False, "missing; runs go on without it", "pip install wandb -c constraints.txt")
    from rlhf_lab.workbench.tracking import TrackingConfig
    from rlhf_lab.workbench.tracking import _mode as wandb_mode

    mode = wandb_mode(TrackingConfig())
    why = "as WANDB_MODE says" if os.environ.get("WANDB_MODE") else ""
    why = why or {"online": "a key is there", "offline": "no key; `wandb login` sets one"}.get(mode, "")
    return Check("wandb", True, f"{mode}: {why}".removesuffix(": "))


def _runs() -> Check:
    root = runs_root()
    parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=parent):
            return Check("runs", True, f"can be written in {root}")
    except OSError as error:
        advice = "set RLHF_LAB_RUNS to a folder of yours"
        return Check("runs", False, f"cannot write in {parent}: {error.strerror}", advice)


def _disk() -> Check:
    root = runs_root()
    parent = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free / 1e9
    return Check("disk", free >= FREE_GB, f"{free:.0f} GB free for runs", "make room, or set RLHF_LAB_RUNS elsewhere")
