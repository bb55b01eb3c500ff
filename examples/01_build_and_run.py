"""Build a model, run supervision steps, and look at what comes out.

python examples/01_build_and_run.py
"""

import mlx.core as mx

import mlx_trm as trm


def main() -> None:
    """Run four steps on random puzzles with random weights."""
    spec = trm.TaskSpec(vocab_size=11, seq_len=81)  # a 9x9 Sudoku
    config = trm.TRMConfig(hidden_size=64, num_heads=4, H_cycles=2, L_cycles=2, halt_max_steps=8)
    model = trm.TRM(config, spec, seed=0).eval()

    batch = trm.random_batch(spec, size=4, seed=0)
    carry = model.initial_carry(batch)
    for step in range(1, 5):
        carry, outputs = model(carry, batch)
        answer = mx.argmax(outputs.logits, axis=-1)
        print(
            f"step {step}: logits {tuple(outputs.logits.shape)}, "
            f"halt probability {mx.sigmoid(outputs.q_halt)[0].item():.4f}, "
            f"first cells {answer[0, :9].tolist()}"
        )


if __name__ == "__main__":
    main()
