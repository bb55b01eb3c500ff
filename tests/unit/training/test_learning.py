"""Every model learns 4x4 Sudoku in a short run: ``sudoku_tiny.yaml`` with another network.

All of it is in the slow set; docs/benchmarks/README.md has the figures.
"""

from typing import Any, Dict, NamedTuple

import pytest

import mlx_trm as trm
from mlx_trm.config.checks import section_fields
from mlx_trm.config.loading import config_from_dict, config_to_dict, load_config
from mlx_trm.config.registry import MODELS


class Learner(NamedTuple):
    """A model's settings beside those of ``sudoku_tiny.yaml``, and what it has to reach.

    Attributes:
        settings: of the model.
        bound: exact accuracy on 1,000 unseen puzzles after 500 steps; an untrained model has 0.
    """

    settings: Dict[str, Any]
    bound: float


# docs/benchmarks/README.md has what each reached; the bounds leave room for other machines.
LEARNERS = {
    "trm": Learner({}, 0.9),
    "hrm": Learner({"H_layers": 2}, 0.9),
    "trm_singlez": Learner({}, 0.9),
    "trm_symbols": Learner(
        {"symbol_size": 16, "token_inner": 32, "inner": 32, "register_tokens": 1}, 0.9
    ),
    "trm_hier6": Learner({"H_cycles": 1, "L_cycles": 6}, 0.7),
    # Its layers have no mixer but attention.
    "transformers_baseline": Learner({"H_layers": 4, "pos_encodings": "learned"}, 0.3),
}


def learner_config(name: str, seed: int) -> trm.ExperimentConfig:
    """The packaged configuration with another model; of its settings those that the model has."""
    values = config_to_dict(load_config("sudoku_tiny.yaml"))
    known = section_fields(MODELS.get(name).config_class)
    model = {key: value for key, value in values["model"].items() if key in known}
    values["model"] = {**model, "name": name, **LEARNERS[name].settings}
    return config_from_dict({**values, "seed": seed}, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_every_model_learns(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trm.Trainer(learner_config(name, seed=0))
    before = trainer.run.evaluator.run("test")["all"]["exact_accuracy"]
    report = trainer.fit()
    metrics = report.evaluations[-1][1]["all"]
    print(f"\n{name}: exact accuracy {before:.3f}, after {report.steps} steps", end=" ")
    print(f"{metrics['exact_accuracy']:.3f}, {report.seconds:.0f} s")
    assert report.steps == 500 and metrics["count"] == 1000
    assert before <= 0.01 and metrics["exact_accuracy"] >= LEARNERS[name].bound
