"""One job of SLURM for each seed of an experiment.

python docs/examples/slurm_sweep.py experiments/quickstart.yaml 100 101 102
"""

import subprocess
import sys

from submitit import AutoExecutor

file, *seeds = sys.argv[1:]
executor = AutoExecutor(folder="runs/.submitit")  # where there is no SLURM: processes of this machine
executor.update_parameters(name="rlhf-lab", cpus_per_task=4, mem_gb=8, timeout_min=60)  # slurm_partition=, ...
command = [sys.executable, "-m", "rlhf_lab", "run", file, "--quiet", "-p"]
with executor.batch():  # one array of jobs
    jobs = {seed: executor.submit(subprocess.call, [*command, f"seed={seed}"]) for seed in seeds}
failed = [f"seed {seed}: {job.stderr()}" for seed, job in jobs.items() if job.result() != 0]  # waits for each
sys.exit("\n".join(failed))
