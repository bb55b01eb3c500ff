"""Saves a small checkpoint with the reference's own code, and the logits that it gives.

    python tests/parity/save_checkpoints.py UPSTREAM_DIR OUT

It runs where ``record_reference.py`` runs and makes the files of tests/reference/checkpoint: what
``torch.save`` writes of the averaged weights of a model under the loss head and ``torch.compile``,
as the reference's training does; two steps of evaluation in float32; and tensors that are views.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_reference import (  # noqa: E402  # pylint: disable=C0413
    Draws,
    Reference,
    batch_of,
    first_carry,
    step,
    write_safetensors,
)
from reference_cases import SMALL, Case  # noqa: E402  # pylint: disable=C0413

SETTINGS = {
    **SMALL,
    "hidden_size": 32,
    "expansion": 1,
    "puzzle_emb_ndim": 40,
    "puzzle_emb_len": 2,
    "forward_dtype": "bfloat16",
    "vocab_size": 6,
}


def main() -> None:
    """Write the files."""
    import torch

    reference, out = Reference(Path(sys.argv[1]).resolve()), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    draws = Draws(0, SETTINGS)
    head = torch.compile(reference.head(Case("trm", SETTINGS), "cpu"))
    average = reference.average(mu=0.5)
    average.register(head)
    draws.randomise(head.model)
    average.update(head)
    torch.save(average.ema_copy(head).state_dict(), out / "step_7")

    state = torch.load(out / "step_7")
    exact = reference.head(Case("trm", SETTINGS), "cpu", forward_dtype="float32").eval()
    exact.load_state_dict({name[len("_orig_mod.") :]: value for name, value in state.items()})
    arrays = {f"batch.{name}": value for name, value in draws.batch(4).items()}
    batch = batch_of(arrays, "batch.")
    carry = first_carry(exact, batch, "cpu")
    with torch.no_grad():
        for number in range(2):
            carry, _, found = step(exact, carry, batch, "cpu")
            for name in ("logits", "q_halt_logits"):
                arrays[f"step{number}.{name}"] = found[name]
    write_safetensors(out / "logits.safetensors", arrays, {"torch": torch.__version__})

    numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tied = numbers.clone()
    views = {
        "whole": numbers,
        "transposed": numbers.t(),
        "strided": numbers[1:3, ::2],
        "expanded": numbers[:1].expand(3, 6),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(tied),
        "tied": tied[1:],
        "bfloat16": numbers.to(torch.bfloat16),
        "float16": numbers.to(torch.float16).t(),
    }
    torch.save(views, out / "views.pt")
    torch.save(views, out / "views_legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
