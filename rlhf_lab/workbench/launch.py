"""Run one notebook's code in several processes that train together, without Jupyter.

    torchrun --nproc_per_node 2 -m rlhf_lab.workbench.launch experiments/03_ppo/nplus.yaml -p seed=1

Every process executes the code cells with the file's parameters; the main one writes the run and prints.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.workbench.experiments.validate import validate


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 for a run that failed, 2 for what the user can mend, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="rlhf_lab.workbench.launch", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="the parameters of one notebook, such as experiments/03_ppo/nplus.yaml")
    parser.add_argument("-p", dest="parameters", metavar="KEY=VALUE", action="append", default=[])
    options = parser.parse_args(arguments)
    os.environ |= {"RLHF_LAB_HEADLESS": "1", "MPLBACKEND": "Agg"}
    rank = int(os.environ.get("RANK") or 0)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    try:
        plan = validate(options.file, options.parameters)
        if len(plan.points) > 1 or len(plan.stages) > 1:
            raise LabError(f"{options.file}: several stages; launch a file of one notebook's parameters at a time")
        run_cells(plan.stages[0].notebook, plan.stages[0].parameters)
    except LabError as error:
        print(f"process {rank}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def run_cells(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Execute the code cells of a notebook in this process, with `parameters` behind its own parameters cell.

    Errors: whatever the first cell that fails raises.
    """
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config as Settings

    settings = Settings()
    settings.HistoryManager.hist_file = ":memory:"  # processes would wait for each other's lock on the file
    shell = InteractiveShell.instance(config=settings)
    given = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        sources = [cell.source] + [given] * ("parameters" in cell.metadata.get("tags", []))
        for source in sources:
            result = shell.run_cell(source, store_history=True)
            if error := result.error_before_exec or result.error_in_exec:
                raise error


if __name__ == "__main__":
    sys.exit(main())
