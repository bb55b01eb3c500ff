"""The worker of the original: trains and evaluates its model as its pretrain.py does.

    python benchmarks/upstream_worker.py CHECKOUT [--gpu]

CHECKOUT is a checkout of SamsungSAILMontreal/TinyRecursiveModels; its modules are imported from
there and nothing of it stands here. Started by benchmarks/run.py, see protocol.py. Needs PyTorch
2.5 or newer and NumPy; einops, pydantic and adam_atan2 are replaced by what stands below where they
are not installed, and results say so.

The step is that of the original's training loop with EMA: batch to the device, forward, loss,
backward, SignSGD on the puzzle table, AdamATan2, metrics read, average updated. Its model is
compiled by torch.compile where the job says so, and so is the replacement of AdamATan2.
"""

# mypy: ignore-errors
import importlib.util
import math
import os
import sys
import types
from typing import Any, Dict, List

from protocol import Job, Side, Work, random_puzzles, serve

SUBSTITUTED: List[str] = []
STATE: Dict[str, Any] = {}


# Replacements, as far as the original's model and losses use the packages ------------------------


def _rearrange(tensor: Any, pattern: str) -> Any:
    """Permute dimensions, as ``einops.rearrange(tensor, 'A B C -> A C B')``."""
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute(*[before.index(name) for name in after])


class _BaseModel:
    """Holds the annotated fields that it is given, and the defaults of the others."""

    def __init__(self, **values: Any) -> None:
        for cls in reversed(type(self).__mro__):
            for name in cls.__dict__.get("__annotations__", {}):
                if name not in values and not hasattr(cls, name):
                    raise TypeError(f"{name} is missing")
                setattr(self, name, values[name] if name in values else getattr(cls, name))


def replace_missing() -> None:
    """Supply the light packages that are not installed."""
    stubs = {"einops": {"rearrange": _rearrange}, "pydantic": {"BaseModel": _BaseModel}}
    for name, members in stubs.items():
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__dict__.update(members)
            sys.modules[name] = module
            SUBSTITUTED.append(f"{name} (only what the model imports)")


def adam_atan2(torch: Any, parameters: List[Any], recipe: Dict[str, Any], compiled: bool) -> Any:
    """Give ``step(lr)`` of AdamATan2 over parameters: the package's, or one of our own.

    Our own works on all parameters at once (foreach), in one compiled function where asked for:
    p *= 1 - lr * wd; m and v as in Adam; p -= lr / (1 - b1^t) * atan2(m, sqrt(v) / sqrt(1 - b2^t)).
    """
    betas, decay = recipe["betas"], recipe["weight_decay"]
    on_gpu = parameters[0].is_cuda
    if on_gpu and importlib.util.find_spec("adam_atan2") is not None:
        from adam_atan2 import AdamATan2

        optimizer = AdamATan2(parameters, lr=0, weight_decay=decay, betas=tuple(betas))

        def package_step(lr: float) -> None:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()

        return package_step
    said = "adam_atan2 (replaced by torch foreach operations" + (", compiled)" if compiled else ")")
    if said not in SUBSTITUTED:
        SUBSTITUTED.append(said)
    means = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    steps = [0]

    def update(weights: Any, gradients: Any, m: Any, v: Any, scalars: Any) -> None:
        keep, rate, root = scalars.unbind()
        torch._foreach_mul_(weights, keep)
        torch._foreach_lerp_(m, gradients, 1.0 - betas[0])
        torch._foreach_mul_(v, betas[1])
        torch._foreach_addcmul_(v, gradients, gradients, 1.0 - betas[1])
        below = torch._foreach_sqrt(v)
        torch._foreach_div_(below, root)
        moves = [torch.atan2(a, b) for a, b in zip(m, below)]
        torch._foreach_mul_(moves, rate)
        torch._foreach_sub_(weights, moves)

    function = torch.compile(update) if compiled else update

    @torch.no_grad()
    def step(lr: float) -> None:
        steps[0] += 1
        number = steps[0]
        scalars = torch.tensor(
            [1.0 - lr * decay, lr / (1.0 - betas[0] ** number), math.sqrt(1.0 - betas[1] ** number)]
        ).to(parameters[0].device, non_blocking=True)
        gradients = [p.grad for p in parameters]
        function(parameters, gradients, means, squares, scalars)
        for p in parameters:
            p.grad = None

    return step


# The model and its steps -------------------------------------------------------------------------


def build(job: Job) -> Any:
    """Give the loss head around a model, compiled where the job says so; one a process and job."""
    import torch
    from models.losses import ACTLossHead
    from models.recursive_reasoning.trm import TinyRecursiveReasoningModel_ACTV1

    key = (job["size"], job["batch"], job["dtype"], job["compiled"])
    if key not in STATE:
        config = dict(
            job["model"],
            batch_size=job["batch"],
            seq_len=job["seq_len"],
            vocab_size=job["vocab_size"],
            num_puzzle_identifiers=job["num_puzzle_identifiers"],
            forward_dtype=job["dtype"],
            H_layers=0,
            causal=False,
        )
        torch.manual_seed(0)
        with torch.device(STATE["device"]):
            model = ACTLossHead(
                TinyRecursiveReasoningModel_ACTV1(config), f"{job['loss']}_cross_entropy"
            )
        STATE[key] = torch.compile(model) if job["compiled"] else model
    return STATE[key]


def to_device(arrays: Dict[str, Any]) -> Dict[str, Any]:
    """Turn NumPy arrays into tensors on the device."""
    import torch

    return {name: torch.from_numpy(array).to(STATE["device"]) for name, array in arrays.items()}


def facts(job: Job) -> Dict[str, Any]:
    """Say what was replaced, and what runs."""
    import torch

    return {
        "substituted": list(SUBSTITUTED),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "mode": "torch.compile" if job["compiled"] else "eager",
        "threads": torch.get_num_threads(),
    }


class Training:
    """What the original trains with, and a step of it.

    Attributes:
        model: the loss head, compiled where the job says so.
        average: the original's EMA of the weights; None without one.
        step: steps taken.
    """

    def __init__(self, job: Job, processes: int = 1) -> None:
        """Build model, optimisers and average.

        Args:
            job: of one process; its ``batch`` is that of all together.
            processes: that train together, of ``torch.distributed``.
        """
        import torch
        from models.ema import EMAHelper
        from models.sparse_embedding import CastedSparseEmbeddingSignSGD_Distributed

        self.recipe, self.batch, self.processes = job["recipe"], job["batch"], processes
        self.model = build({**job, "batch": job["batch"] // processes})
        self.plain = getattr(self.model, "_orig_mod", self.model)
        self.table = None
        if job["model"]["puzzle_emb_ndim"]:
            self.table = CastedSparseEmbeddingSignSGD_Distributed(
                self.plain.model.puzzle_emb.buffers(),
                lr=0,
                weight_decay=self.recipe["puzzle_emb_weight_decay"],
                world_size=processes,
            )
        self.parameters = list(self.model.parameters())
        self.adam = adam_atan2(torch, self.parameters, self.recipe, job["compiled"])
        self.average = None
        if self.recipe["ema_rate"]:
            self.average = EMAHelper(mu=self.recipe["ema_rate"])
            self.average.register(self.model)
        self.carry, self.step = None, 0

    def take(self, batch: Dict[str, Any], factor: float) -> Dict[str, float]:
        """Take a step, and read its metrics: sums over the rows of all processes.

        Args:
            batch: tensors on the device, this process's rows.
            factor: of the learning rates.
        """
        import torch

        if self.carry is None:
            with torch.device(STATE["device"]):
                self.carry = self.plain.initial_carry(batch)
        self.carry, loss, metrics, _, _ = self.model(carry=self.carry, batch=batch, return_keys=[])
        (loss / self.batch).backward()
        if self.processes > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
        self.step += 1
        if self.table is not None:
            self.table.param_groups[0]["lr"] = self.recipe["puzzle_emb_lr"] * factor
            self.table.step()
            self.table.zero_grad()
        self.adam(self.recipe["lr"] * factor)
        names = sorted(metrics)
        values = torch.stack([metrics[name] for name in names])
        if self.processes > 1:
            torch.distributed.all_reduce(values)
        found = dict(zip(names, values.cpu().numpy()))
        if self.average is not None:
            self.average.update(self.model)
        return found


def train(job: Job) -> Work:
    """Take supervision steps with everything that trains."""
    batches, held = random_puzzles(job, 4), [Training(job)]

    def run(count: int) -> None:
        training = held[0]
        training.model.train()
        for number in range(count):
            batch = to_device(batches[number % len(batches)])
            warm = min(1.0, (training.step + 1) / max(1, training.recipe["lr_warmup_steps"]))
            training.take(batch, warm)
        synchronize()

    return Work(run, lambda: facts(job), close=held.clear)


def evaluate(job: Job) -> Work:
    """Evaluate a batch: steps until all rows are finished, metrics and predictions read."""
    import torch

    arrays = random_puzzles(job, 1)[0]
    model = build(job)
    plain = getattr(model, "_orig_mod", model)
    steps, most = [0], job.get("eval_steps") or job["model"]["halt_max_steps"]

    def run(count: int) -> None:
        model.eval()
        with torch.inference_mode():
            for _ in range(count):
                batch = to_device(arrays)
                with torch.device(STATE["device"]):
                    carry = plain.initial_carry(batch)
                finished, steps[0] = False, 0
                while not finished and steps[0] < most:
                    carry, _, metrics, found, finished = model(
                        carry=carry, batch=batch, return_keys={"preds", "q_halt_logits"}
                    )
                    steps[0] += 1
                torch.stack([metrics[name] for name in sorted(metrics)]).cpu().numpy()
                for tensor in found.values():
                    tensor.cpu().numpy()
        synchronize()

    return Work(run, lambda: {**facts(job), "steps_in_unit": steps[0]})


# The device --------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait until the device has done everything."""
    import torch

    if STATE["device"] == "cuda":
        torch.cuda.synchronize()


def empty_cache() -> None:
    """Give freed memory back to the device."""
    import torch

    if STATE["device"] == "cuda":
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Count the device's peak memory anew."""
    import torch

    if STATE["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak() -> Any:
    """Give the most bytes that tensors held on the GPU; None on the CPU, where none are counted."""
    import torch

    return torch.cuda.max_memory_allocated() if STATE["device"] == "cuda" else None


def prepare(job: Job) -> Work:
    """Make the work of a job."""
    return {"train": train, "eval": evaluate}[job["case"]](job)


def versions(job: Job) -> Dict[str, Any]:
    """Say what runs, and whether the device is there."""
    import torch

    if STATE["device"] == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch finds no CUDA GPU")
    import models.recursive_reasoning.trm  # noqa: F401  # to fail early

    return {"torch": torch.__version__, "substituted": list(SUBSTITUTED)}


def main() -> None:
    """Serve."""
    sys.dont_write_bytecode = True
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    STATE["device"] = "cuda" if "--gpu" in sys.argv else "cpu"
    replace_missing()
    sys.path.insert(1, os.path.abspath(sys.argv[1]))
    serve(Side(prepare, {"versions": versions}, reset_peak, peak, empty_cache))


if __name__ == "__main__":
    main()
