"""Any set of runs side by side: ours, and those of offline wandb directories."""
