"""Runs the reference in PyTorch and writes recordings in the format of tests/reference.

    python tests/parity/record_reference.py UPSTREAM_DIR OUT [--case NAME] [--device cpu]

UPSTREAM_DIR is a checkout of the reference. It runs in an environment of the reference's own, with
torch, NumPy, pydantic and einops; MLX is not needed, nor the reference's training script.
``python -m mlx_trm.parity OUT`` then compares what was written with this package.

Every step starts from a recorded state and is replayed once more in another arithmetic: on the CPU
where a GPU recorded, else with other kernels and, for float32, in float64 as far as it goes.
How far that is from the recording is its ``self_deviation``.
"""

import argparse
import ast
import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
import traceback
import warnings
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reference_cases import CASES, HYPERPARAMETERS, Case  # noqa: E402  # pylint: disable=C0413

CLASSES = {
    "trm": "TinyRecursiveReasoningModel_ACTV1",
    "trm_singlez": "TinyRecursiveReasoningModel_ACTV1",
    "trm_hier6": "TinyRecursiveReasoningModel_ACTV1",
    "hrm": "HierarchicalReasoningModel_ACTV1",
    "transformers_baseline": "Model_ACTV2",
}
SCRIPT = "pretrain.py"
LOSS = "stablemax_cross_entropy"
IGNORED = -100
TRAIN_STEPS, FULL_STEPS, LAST_PARAMETERS = 8, 3, 8
OUTPUTS = ("logits", "q_halt_logits", "q_continue_logits", "preds")
DTYPES = {"float32": "F32", "bfloat16": "BF16", "int32": "I32", "int64": "I64", "bool": "BOOL"}
Arrays = Dict[str, Any]


def main(argv: Optional[List[str]] = None) -> int:
    """Record the cases asked for; exit code 2, after one line, where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("upstream", type=Path, metavar="UPSTREAM_DIR", help="of the reference")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the recordings")
    parser.add_argument(
        "--case", action="append", metavar="NAME", choices=sorted(CASES), help="(repeatable)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where it is")
    args = parser.parse_args(argv)
    if not (args.upstream / "models" / "recursive_reasoning").is_dir():
        return refuse(
            f"{args.upstream}: is no checkout of the reference (models/recursive_reasoning/ is not "
            "there); name a whole one"
        )
    if args.out.exists() and not args.out.is_dir():
        return refuse(f"{args.out}: is a file; name a folder")
    try:
        import torch
    except ImportError:
        return refuse("torch is not installed here; run this in the reference's environment")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return refuse("--device cuda: torch finds no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    names = args.case or list(CASES)
    try:
        reference = Reference(args.upstream.resolve(), [CASES[name].model for name in names])
    except CheckoutError as error:
        return refuse(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        arrays, metadata = record(reference, name, CASES[name], device)
        path = args.out / f"{name}.safetensors"
        write_safetensors(path, arrays, metadata)
        update_manifest(args.out / "manifest.json", path, metadata)
        print(f"{path}: {len(arrays)} arrays, self deviation {metadata['self_deviation']}")
    return 0


def refuse(line: str) -> int:
    """Say in one line why nothing was recorded."""
    sys.stderr.write(line + "\n")
    return 2


class CheckoutError(Exception):
    """A checkout of the reference lacks something; says in one line which file and what to do."""

    def __init__(self, path: Path, what: str) -> None:
        """Say ``what`` is wrong with a file."""
        super().__init__(
            f"{path}: {what}; use a whole checkout of the reference, where torch, NumPy, pydantic "
            "and einops are installed"
        )


class Reference:
    """The reference's own classes and functions, imported from a checkout."""

    def __init__(self, folder: Path, models: Iterable[str] = ()) -> None:
        """Import what recording takes, and models; the training script is read, not imported.

        Raises:
            CheckoutError: if a file is missing, or cannot be imported.
        """
        sys.path.insert(0, str(folder))
        self.folder = folder
        self.loss_head = self.take("models/losses.py", "ACTLossHead")
        self.sign_sgd = self.take(
            "models/sparse_embedding.py", "CastedSparseEmbeddingSignSGD_Distributed"
        )
        self.average = self.take("models/ema.py", "EMAHelper")
        self.schedule = self.take(SCRIPT, "cosine_schedule_with_warmup_lr_lambda")
        for model in models:
            self.model(model)
        self.commit = commit_of(folder)

    def take(self, file: str, name: str) -> Any:
        """Give what has a name in a file."""
        path = self.folder / file
        if not path.is_file():
            raise CheckoutError(path, "is not there")
        try:
            if file == SCRIPT:
                scope = function_of(path, name)
            else:
                scope = vars(importlib.import_module(file[: -len(".py")].replace("/", ".")))
        except Exception as error:
            raise blamed(error, self.folder, path) from error
        if name not in scope:
            raise CheckoutError(path, f"has no {name}")
        return scope[name]

    def model(self, name: str) -> Any:
        """Give a model's class."""
        return self.take(f"models/recursive_reasoning/{name}.py", CLASSES[name])

    def head(self, case: Case, device: str, **changes: Any) -> Any:
        """Build a model under its loss head."""
        import torch

        build = self.model(case.model)
        with torch.device(device):
            model = build({**case.settings, **changes})
            return self.loss_head(model, LOSS)


def blamed(error: Exception, folder: Path, path: Path) -> CheckoutError:
    """Name the file of a checkout in which an import ended, or that it did not find."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("models."):
        return CheckoutError(folder / f"{error.name.replace('.', '/')}.py", "is not there")
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append(error.filename or "")
    within = [path, *(Path(frame) for frame in frames if frame.startswith(str(folder)))]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return CheckoutError(within[-1], f"cannot be imported ({text})")


def function_of(path: Path, name: str) -> Dict[str, Any]:
    """Take one function out of a script whose imports are not wanted; it stands under its name."""
    tree = ast.parse(path.read_bytes(), str(path))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    scope: Dict[str, Any] = {"math": math}
    exec(compile(tree, str(path), "exec"), scope)  # pylint: disable=exec-used
    return scope


def commit_of(folder: Path) -> str:
    """Ask git for the commit of a checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# One case ----------------------------------------------------------------------------------------


def record(
    reference: Reference, name: str, case: Case, device: str
) -> Tuple[Arrays, Dict[str, str]]:
    """Run one case and give its arrays and metadata."""
    import torch

    draws = Draws(zlib.crc32(name.encode("utf-8")), case.settings)
    torch.manual_seed(draws.seed)
    head = reference.head(case, device)
    if case.trains:
        draws.randomise(head.model)
    else:
        formula_weights(head.model)
    arrays: Arrays = {}
    if case.trains:
        arrays.update({f"init.{key}": value for key, value in state_of(head.model).items()})
    batch = draws.batch(case.settings["batch_size"])
    arrays.update({f"eval.batch.{key}": value for key, value in batch.items()})
    evaluate(head, case, arrays, device)
    optimizer = "-"
    if case.trains:
        optimizer = train(reference, head, case, arrays, draws, device)
    metadata = {
        "case": name,
        "model": case.model,
        "loss": LOSS,
        "config": json.dumps(case.settings),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "upstream_commit": reference.commit,
        "self_deviation": json.dumps(self_deviation(reference, case, arrays, device)),
    }
    if case.trains:
        metadata.update(optimizer=optimizer, hyperparameters=json.dumps(HYPERPARAMETERS))
    else:
        metadata["weights"] = (
            "RandomState(crc32(name)).standard_normal(shape), divided by sqrt(shape[-1]) where "
            "2-D, float32, then cast to the parameter's dtype"
        )
    return arrays, metadata


class Draws:
    """Random weights, puzzles and exploration of a case; a seed decides them."""

    def __init__(self, seed: int, settings: Mapping[str, Any]) -> None:
        """Start the stream."""
        import torch

        self.seed, self.settings = seed, settings
        self.generator = torch.Generator().manual_seed(seed)

    def randomise(self, model: Any) -> None:
        """Make the Q head and the puzzle table matter; the reference starts them at a constant."""
        import torch

        inner, size = model.inner, self.settings["hidden_size"]
        with torch.no_grad():
            weight = torch.randn(2, size, generator=self.generator) / math.sqrt(size)
            inner.q_head.weight.copy_(weight)
            inner.q_head.bias.copy_(0.5 * torch.randn(2, generator=self.generator))
            if hasattr(inner, "puzzle_emb"):
                table = inner.puzzle_emb.weights
                table.copy_(0.5 * torch.randn(table.shape, generator=self.generator))

    def batch(self, rows: int) -> Arrays:
        """Draw puzzles, one label in seven ignored."""
        import torch

        def whole(low: int, high: int, *shape: int) -> Any:
            return torch.randint(low, high, shape, generator=self.generator, dtype=torch.int32)

        tokens, cells = self.settings["vocab_size"], self.settings["seq_len"]
        labels = whole(1, tokens, rows, cells)
        labels[whole(0, 7, rows, cells) == 0] = IGNORED
        return {
            "inputs": whole(0, tokens, rows, cells),
            "labels": labels,
            "puzzle_identifiers": whole(0, self.settings["num_puzzle_identifiers"], rows),
        }

    def exploration(self, rows: int) -> Arrays:
        """Draw what decides which rows go on, and how long."""
        import torch

        high = self.settings["halt_max_steps"] + 1
        return {
            "uniform": torch.rand(rows, generator=self.generator),
            "randint": torch.randint(2, high, (rows,), generator=self.generator, dtype=torch.int32),
        }


def formula_weights(model: Any) -> None:
    """Fill a model by the formula of full-size cases, see tests/reference/README.md."""
    import numpy as np
    import torch

    for name, value in model.state_dict().items():
        numbers = np.random.RandomState(zlib.crc32(name.encode("utf-8"))).standard_normal(
            tuple(value.shape)
        )
        if value.ndim == 2:
            numbers = numbers / np.sqrt(value.shape[-1])
        value.copy_(torch.from_numpy(numbers.astype(np.float32)).to(value.dtype))


def state_of(model: Any) -> Arrays:
    """Copy a state dict to the host."""
    return {name: host(value) for name, value in model.state_dict().items()}


def host(value: Any) -> Any:
    """Copy a tensor to the host."""
    return value.detach().to("cpu", copy=True)


# Steps -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exploring(draws: Mapping[str, Any], device: str) -> Iterator[None]:
    """Let the model's two draws of exploration give recorded numbers."""
    import torch

    own = torch.rand_like, torch.randint_like
    torch.rand_like = lambda *_, **__: draws["uniform"].to(device)
    torch.randint_like = lambda *_, **__: draws["randint"].to(device)
    try:
        yield
    finally:
        torch.rand_like, torch.randint_like = own


def step(head: Any, carry: Any, batch: Mapping[str, Any], device: str) -> Tuple[Any, Any, Arrays]:
    """Take one supervision step; give the carry, the loss, and what is recorded of it."""
    on_device = {name: value.to(device) for name, value in batch.items()}
    carry, loss, metrics, outputs, _ = head(carry=carry, batch=on_device, return_keys=OUTPUTS)
    found = {name: host(outputs[name]) for name in OUTPUTS}
    found["loss"] = host(loss).float()
    for name, value in metrics.items():
        found[f"metric.{name}"] = host(value).float()
    for name, value in vars(carry.inner_carry).items():
        found[f"carry.{name}"] = host(value)
    found["carry.steps"], found["carry.halted"] = host(carry.steps), host(carry.halted)
    return carry, loss, found


def evaluate(head: Any, case: Case, arrays: Arrays, device: str) -> None:
    """Record evaluation steps, one batch throughout."""
    import torch

    head.eval()
    batch = batch_of(arrays, "eval.batch.")
    carry = first_carry(head, batch, device)
    steps = case.settings["halt_max_steps"]
    for number in range(steps):
        with torch.no_grad():
            carry, _, found = step(head, carry, batch, device)
        if not case.trains:  # these are to stay small
            kept = ["logits", "q_halt_logits", "q_continue_logits", "loss"]
            if number < steps - 1:
                kept += [key for key in found if key.startswith("carry.z_")]
            found = {key: found[key] for key in kept}
        arrays.update({f"eval.step{number}.{key}": value for key, value in found.items()})


def train(
    reference: Reference, head: Any, case: Case, arrays: Arrays, draws: Draws, device: str
) -> str:
    """Record training steps, a fresh batch each; give the optimiser's name."""
    hyper, model = HYPERPARAMETERS, head.model
    head.train()
    adam, optimizer = adam_atan2(list(model.parameters()), device)
    sign_sgd = None
    if case.settings["puzzle_emb_ndim"]:
        sign_sgd = reference.sign_sgd(
            model.puzzle_emb.buffers(),
            lr=0,
            weight_decay=hyper["puzzle_emb_weight_decay"],
            world_size=1,
        )
    average = reference.average(mu=hyper["ema_rate"])
    average.register(model)
    carry, rows = None, case.settings["batch_size"]
    for number in range(1, TRAIN_STEPS + 1):
        prefix = f"train.step{number}."
        batch, explore = draws.batch(rows), draws.exploration(rows)
        arrays.update({f"{prefix}batch.{key}": value for key, value in batch.items()})
        arrays.update({f"{prefix}explore.{key}": value for key, value in explore.items()})
        if carry is None:
            carry = first_carry(head, batch, device)
        else:
            for key, value in vars(carry.inner_carry).items():
                arrays[f"{prefix}entering.{key}"] = host(value)
        with exploring(explore, device):
            carry, loss, found = step(head, carry, batch, device)
        (loss / hyper["global_batch_size"]).backward()
        for key, value in found.items():
            if key != "preds" and not key.startswith("carry.z_"):
                arrays[prefix + key] = value
        for key, value in carry.current_data.items():
            arrays[f"{prefix}carry.current_data.{key}"] = host(value)
        if number <= FULL_STEPS:
            for key, value in gradients(model).items():
                arrays[f"{prefix}grad.{key}"] = value
        rates = [
            reference.schedule(
                number,
                base_lr=hyper[name],
                num_warmup_steps=hyper["lr_warmup_steps"],
                num_training_steps=hyper["total_steps"],
                min_ratio=hyper["lr_min_ratio"],
            )
            for name in ("lr", "puzzle_emb_lr")
        ]
        arrays[prefix + "lr"] = scalar(rates[0])
        for used, rate in ((adam, rates[0]), (sign_sgd, rates[1])):
            if used is not None:
                used.param_groups[0]["lr"] = rate
                used.step()
                used.zero_grad()
        average.update(model)
        if number <= FULL_STEPS or number == LAST_PARAMETERS:
            kept = dict(model.named_parameters())
            if sign_sgd is not None:
                kept["inner.puzzle_emb.weights"] = model.puzzle_emb.weights
            arrays.update({f"{prefix}param.{key}": host(value) for key, value in kept.items()})
        if number <= FULL_STEPS:
            for key, value in average.state_dict().items():
                arrays[f"{prefix}ema.{key}"] = host(value)
    return optimizer


def batch_of(arrays: Arrays, prefix: str) -> Arrays:
    """Give a recorded batch."""
    return {key: arrays[prefix + key] for key in ("inputs", "labels", "puzzle_identifiers")}


def first_carry(head: Any, batch: Mapping[str, Any], device: str) -> Any:
    """Make the carry before the first step, with zeros where the reference leaves memory as is."""
    import torch

    with torch.device(device):
        carry = head.initial_carry({key: value.to(device) for key, value in batch.items()})
    for value in (*vars(carry.inner_carry).values(), *carry.current_data.values()):
        value.zero_()
    return carry


def gradients(model: Any) -> Arrays:
    """Copy the gradients, zeros where there is none, and those of the puzzle rows."""
    import torch

    found = {}
    for name, value in model.named_parameters():
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        found[name] = host(gradient)
    if hasattr(model.inner, "puzzle_emb"):
        local = model.inner.puzzle_emb.local_weights
        found["inner.puzzle_emb.local_weights"] = host(local.grad)
    return found


def scalar(value: float) -> Any:
    """Make a float32 tensor of one number."""
    import torch

    return torch.tensor(value, dtype=torch.float32)


def adam_atan2(parameters: List[Any], device: str) -> Tuple[Any, str]:
    """Give the reference's optimiser; without its CUDA package, the same formula in torch."""
    hyper = HYPERPARAMETERS
    settings: Dict[str, Any] = {"weight_decay": hyper["weight_decay"]}
    settings["betas"] = (hyper["beta1"], hyper["beta2"])
    if device == "cuda":
        try:
            module = importlib.import_module("adam_atan2")
            return module.AdamATan2(parameters, lr=0, **settings), "adam_atan2 CUDA kernel"
        except ImportError:
            sys.stderr.write("adam-atan2 is not installed: its formula is computed in torch\n")
    return PlainAdamATan2(parameters, **settings), "AdamATan2 written out in torch"


class PlainAdamATan2:
    """AdamATan2 with decoupled decay, from its formula."""

    def __init__(
        self, parameters: List[Any], weight_decay: float, betas: Tuple[float, float]
    ) -> None:
        """Start with moments of 0."""
        import torch

        self.param_groups = [{"lr": 0.0}]
        self.parameters, self.weight_decay, self.betas, self.count = (
            parameters,
            weight_decay,
            betas,
            0,
        )
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def step(self) -> None:
        """Move the parameters."""
        import torch

        self.count += 1
        rate, (first, second) = self.param_groups[0]["lr"], self.betas
        with torch.no_grad():
            for parameter, (mean, square) in zip(self.parameters, self.moments):
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - rate * self.weight_decay)
                mean.lerp_(parameter.grad, 1 - first)
                square.lerp_(parameter.grad.square(), 1 - second)
                size = square.sqrt() / math.sqrt(1 - second**self.count)
                parameter.sub_(torch.atan2(mean, size) * (rate / (1 - first**self.count)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None


# How far the reference is from itself ------------------------------------------------------------


def self_deviation(
    reference: Reference, case: Case, arrays: Arrays, device: str
) -> Dict[str, float]:
    """Replay the recorded steps in another arithmetic and measure the largest differences.

    Of a CUDA recording that is the CPU. Of a CPU recording it is the CPU with other kernels, and
    for float32 also with float64 as ``forward_dtype``.
    """
    found: Dict[str, float] = {}
    if device == "cuda":
        replay(reference.head(case, "cpu"), case, arrays, found)
    else:
        with other_kernels():
            replay(reference.head(case, "cpu"), case, arrays, found)
        if case.settings["forward_dtype"] == "float32":
            replay(reference.head(case, "cpu", forward_dtype="float64"), case, arrays, found)
    return {name: float(f"{value:.2g}") for name, value in found.items()}


@contextlib.contextmanager
def other_kernels() -> Iterator[None]:
    """Compute without oneDNN, and linear layers in float32, rounded once."""
    import torch

    functional = torch.nn.functional
    own = functional.linear

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        bias = None if bias is None else bias.float()
        return own(x.float(), weight.float(), bias).to(x.dtype)

    functional.linear = linear
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about GPUs that are not there
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        functional.linear = own


def replay(head: Any, case: Case, arrays: Arrays, found: Dict[str, float]) -> None:
    """Take every recorded step again, each from what was recorded as entering it."""
    import torch

    def note(name: str, ours: Any, theirs: Any, relative: bool = False) -> None:
        ours, theirs = ours.double(), theirs.double()
        difference = (ours - theirs).norm() if relative else (ours - theirs).abs().max()
        size = theirs.norm().item() if relative else 0.0
        value = difference.item() / (size or 1.0)
        found[name] = max(found.get(name, 0.0), value)

    def load(prefix: str) -> None:
        state = head.model.state_dict()
        for name, value in state.items():
            recorded = arrays.get(f"{prefix}.{name}", arrays.get(f"init.{name}"))
            if recorded is not None:
                value.copy_(recorded)

    if case.trains:
        load("init")
    else:
        formula_weights(head.model)
    head.eval()
    batch = batch_of(arrays, "eval.batch.")
    carry = first_carry(head, batch, "cpu")
    for number in range(case.settings["halt_max_steps"]):
        prefix = f"eval.step{number}."
        with torch.no_grad():
            carry, _, again = step(head, carry, batch, "cpu")
        for name in ("logits", "q_halt_logits"):
            note(f"eval.{name}", again[name], arrays[prefix + name])
        for name, value in vars(carry.inner_carry).items():
            recorded = arrays.get(f"{prefix}carry.{name}")
            if recorded is not None:
                note("eval.carry", value, recorded)
                setattr(carry.inner_carry, name, recorded.to(value.dtype))
    if not case.trains:
        return
    head.train()
    carry = first_carry(head, batch_of(arrays, "train.step1.batch."), "cpu")
    for number in range(1, FULL_STEPS + 2):
        prefix = f"train.step{number}."
        load("init" if number == 1 else f"train.step{number - 1}.param")
        carry = entering(carry, arrays, number)
        head.zero_grad()
        if hasattr(head.model.inner, "puzzle_emb"):
            head.model.inner.puzzle_emb.local_weights.grad = None
        explore = {key: arrays[f"{prefix}explore.{key}"] for key in ("uniform", "randint")}
        with exploring(explore, "cpu"):
            carry, loss, again = step(head, carry, batch_of(arrays, prefix + "batch."), "cpu")
        note("train.logits", again["logits"], arrays[prefix + "logits"])
        note("train.loss", again["loss"], arrays[prefix + "loss"], relative=True)
        if number <= FULL_STEPS:
            (loss / HYPERPARAMETERS["global_batch_size"]).backward()
            for name, value in gradients(head.model).items():
                note("train.grad_rel", value, arrays[f"{prefix}grad.{name}"], relative=True)


def entering(carry: Any, arrays: Arrays, number: int) -> Any:
    """Put what is recorded as entering a training step into a carry."""
    if number == 1:
        return carry
    latents = {
        name: arrays[f"train.step{number}.entering.{name}"].to(value.dtype)
        for name, value in vars(carry.inner_carry).items()
    }
    before = f"train.step{number - 1}.carry."
    return dataclasses.replace(
        carry,
        inner_carry=dataclasses.replace(carry.inner_carry, **latents),
        steps=arrays[before + "steps"],
        halted=arrays[before + "halted"],
        current_data=batch_of(arrays, before + "current_data."),
    )


# Files -------------------------------------------------------------------------------------------


def write_safetensors(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    import torch

    header: Dict[str, Any] = {"__metadata__": dict(metadata)}
    offset, parts = 0, []
    for name in sorted(arrays):
        value = arrays[name].contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": DTYPES[str(value.dtype).replace("torch.", "")],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
        parts.append(raw)
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    os.replace(temporary, path)


def update_manifest(path: Path, recording: Path, metadata: Mapping[str, str]) -> None:
    """Enter a recording in ``manifest.json``."""
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = recording.read_bytes()
    kept = ("cuda", "device", "model", "torch", "upstream_commit")
    manifest[recording.stem] = {
        "bytes": len(content),
        "optimizer": metadata.get("optimizer", "-"),
        "self_deviation": json.loads(metadata["self_deviation"]),
        "sha256": hashlib.sha256(content).hexdigest(),
        **{name: metadata[name] for name in kept},
    }
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
