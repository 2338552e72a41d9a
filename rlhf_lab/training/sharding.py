"""Weights that are shared out among processes: FSDP2, by torch's `fully_shard`.

Each process keeps a part of every weight, and a layer is put together when it is passed through. accelerate's own
preparation is not used: it takes one model and one optimizer, and on CPUs it gives unsharded DistributedDataParallel.
"""

from rlhf_lab.errors import LabError
from rlhf_lab.models import AdapterPolicy, Scorer
from rlhf_lab.models.adapters import AdapterScorer
from rlhf_lab.training.processes import Processes

METHODS = ("token_outputs", "sequence_outputs")  # of a scorer, which go past its forward


def shard_models(processes: Processes, *models) -> None:
    """Shard models in place, layer by layer; None is left out. To be done before the optimizer is made.

    Errors: `LabError` for adapters and for models that share weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    models = [model for model in models if model is not None]
    if any(isinstance(model, AdapterPolicy | AdapterScorer) for model in models):
        raise LabError(f"{processes.doing}: adapters on a shared base cannot be sharded; train without 'lora'")
    weights = [{id(p) for p in model.parameters()} for model in models]
    if sum(map(len, weights)) > len(set().union(*weights)):
        raise LabError(f"{processes.doing}: models that share weights cannot be sharded; choose critic 'policy'")
    mesh = init_device_mesh(processes.accelerator.device.type, (processes.count,))
    for model in models:
        inner = model.model if isinstance(model, Scorer) else model
        layers = set(getattr(inner, "_no_split_modules", None) or ())
        for module in inner.modules():
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if isinstance(model, Scorer):
            for name in METHODS:
                register_fsdp_forward_method(model, name)
