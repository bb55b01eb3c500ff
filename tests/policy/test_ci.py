"""The workflow: images that exist, each Python that is promised, and devices that are said."""

import re

import pytest
import yaml
from paths import ROOT

PATH = ROOT / ".github" / "workflows" / "ci.yml"
# What actionlint 1.7 knows of GitHub's hosted images; macos-14 was retired in November 2026.
IMAGES = {"ubuntu-latest", "macos-15"}
JOB_KEYS = {"name", "runs-on", "timeout-minutes", "strategy", "steps", "env", "continue-on-error"}
STEP_KEYS = {"name", "run", "uses", "with", "env", "if"}


@pytest.fixture(name="jobs", scope="module")
def fixture_jobs():
    """The jobs by name; a duplicate key would be an error of YAML's strictest readers only."""
    text = PATH.read_text(encoding="utf-8")
    assert "\t" not in text
    return yaml.safe_load(text)["jobs"]


def test_jobs_and_steps_have_known_keys(jobs):
    for name, job in jobs.items():
        assert set(job) <= JOB_KEYS and {"runs-on", "steps", "timeout-minutes"} <= set(job), name
        assert job["runs-on"] in IMAGES, name
        for step in job["steps"]:
            assert set(step) <= STEP_KEYS and ("run" in step) != ("uses" in step), (name, step)


def test_macos_runs_each_python_on_a_device_that_is_said(jobs):
    job = jobs["macos"]
    assert job["strategy"]["matrix"]["python"] == ["3.9", "3.12", "3.13"]
    tests = [step for step in job["steps"] if "pytest" in step.get("run", "")]
    assert [step["env"]["MLX_TRM_TEST_DEVICE"] for step in tests] == ["cpu"]
    commands = [s["run"] for s in job["steps"] if "mlx_trm." in s.get("run", "")]
    assert commands and all("--device cpu" in command for command in commands)


def test_the_virtual_gpu_s_job_cannot_fail_the_others(jobs):
    job = jobs["metal"]
    assert job["continue-on-error"] is True
    assert job["env"] == {"MLX_TRM_TEST_DEVICE": "gpu", "MLX_ENABLE_TF32": "0"}


def test_what_the_workflow_names_is_there(jobs):
    """Files of tests, presets and folders."""
    for job in jobs.values():
        for step in job["steps"]:
            for path in re.findall(r"\b(?:tests|benchmarks)/[\w./]+\w", step.get("run", "")):
                assert (ROOT / path).exists(), path
            for preset in re.findall(r"--config (\S+)", step.get("run", "")):
                assert (ROOT / "mlx_trm" / "config" / "presets" / preset).is_file(), preset
