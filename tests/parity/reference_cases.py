"""The cases that the reference is recorded in; for the recorder and for the tests of its files.

Nothing but the standard library is needed here: the recorder runs where torch is and MLX is not.
"""

from typing import Any, Dict, NamedTuple

SMALL: Dict[str, Any] = {
    "hidden_size": 16,
    "num_heads": 2,
    "expansion": 4,
    "H_cycles": 2,
    "L_cycles": 2,
    "H_layers": 1,
    "L_layers": 1,
    "pos_encodings": "rope",
    "halt_max_steps": 4,
    "halt_exploration_prob": 0.0,
    "forward_dtype": "float32",
    "puzzle_emb_ndim": 16,
    "puzzle_emb_len": 4,
    "mlp_t": False,
    "no_ACT_continue": True,
    "seq_len": 16,
    "vocab_size": 11,
    "num_puzzle_identifiers": 5,
    "batch_size": 6,
}
MLP: Dict[str, Any] = {"mlp_t": True, "pos_encodings": "none"}
FULL: Dict[str, Any] = {
    **SMALL,
    **MLP,
    "hidden_size": 512,
    "num_heads": 8,
    "H_cycles": 3,
    "L_cycles": 6,
    "halt_max_steps": 2,
    "puzzle_emb_ndim": 512,
    "puzzle_emb_len": 16,
    "seq_len": 81,
    "num_puzzle_identifiers": 1,
    "batch_size": 2,
}
HYPERPARAMETERS: Dict[str, Any] = {
    "lr": 0.01,
    "puzzle_emb_lr": 0.02,
    "weight_decay": 0.5,
    "puzzle_emb_weight_decay": 0.3,
    "beta1": 0.9,
    "beta2": 0.95,
    "lr_warmup_steps": 3,
    "total_steps": 20,
    "lr_min_ratio": 0.1,
    "ema_rate": 0.9,
    "global_batch_size": 6,
}


class Case(NamedTuple):
    """One recording.

    Attributes:
        model: the reference's name of it, that of its file.
        settings: by the reference's field names.
        trains: whether training steps are recorded; without them weights are made by a formula.
    """

    model: str
    settings: Dict[str, Any]
    trains: bool = True


BFLOAT16 = {"forward_dtype": "bfloat16"}
CASES: Dict[str, Case] = {
    "full_sudoku_mlp_bf16": Case("trm", {**FULL, **BFLOAT16}, trains=False),
    "full_sudoku_mlp_f32": Case("trm", FULL, trains=False),
    "hrm_f32": Case("hrm", {k: v for k, v in SMALL.items() if k != "puzzle_emb_len"}),
    "transformers_baseline_f32": Case(
        "transformers_baseline", {**SMALL, "H_cycles": 1, "H_layers": 2}
    ),
    "trm_att_learned_f32": Case(
        "trm", {**SMALL, "pos_encodings": "learned", "puzzle_emb_ndim": 24, "puzzle_emb_len": 0}
    ),
    "trm_att_rope_bf16": Case("trm", {**SMALL, **BFLOAT16}),
    "trm_att_rope_f32": Case("trm", {**SMALL, "L_layers": 2}),
    "trm_explore_f32": Case("trm", {**SMALL, **MLP, "halt_exploration_prob": 0.5}),
    "trm_hier6_f32": Case("trm_hier6", {**SMALL, "L_cycles": 6}),
    "trm_mlp_bf16": Case("trm", {**SMALL, **MLP, **BFLOAT16}),
    "trm_mlp_f32": Case("trm", {**SMALL, **MLP, "L_layers": 2}),
    "trm_nopuzzle_f32": Case("trm", {**SMALL, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0}),
    "trm_singlez_f32": Case("trm_singlez", SMALL),
}
