"""The workflows: images that exist, each Python that is promised, and devices that are said."""

import re
import shutil
import subprocess
from types import SimpleNamespace

import conftest
import pytest
import yaml
from paths import ROOT

from mlx_trm.config.strict_yaml import parse_yaml

WORKFLOWS = ROOT / ".github" / "workflows"
PATHS = sorted(WORKFLOWS.glob("*.yml"))
PATH = WORKFLOWS / "ci.yml"
# What actionlint 1.7 knows of GitHub's hosted images; macos-14 was retired in November 2026.
IMAGES = {"ubuntu-latest", "macos-15"}
PYTHONS = {"3.9", "3.10", "3.11", "3.12", "3.13"}
JOB_KEYS = {"name", "runs-on", "timeout-minutes", "strategy", "steps", "env", "continue-on-error"}
JOB_KEYS |= {"needs", "permissions", "environment", "outputs", "if"}
STEP_KEYS = {"name", "run", "uses", "with", "env", "if", "id"}


def jobs_of(path):
    """The jobs of a workflow by name."""
    text = path.read_text(encoding="utf-8")
    assert "\t" not in text
    return yaml.safe_load(text)["jobs"]


@pytest.fixture(name="jobs", scope="module")
def fixture_jobs():
    """The jobs by name; a duplicate key would be an error of YAML's strictest readers only."""
    return jobs_of(WORKFLOWS / "ci.yml")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_jobs_and_steps_have_known_keys(path):
    jobs = jobs_of(path)
    for name, job in jobs.items():
        assert set(job) <= JOB_KEYS and {"runs-on", "steps", "timeout-minutes"} <= set(job), name
        assert job["runs-on"] in IMAGES, name
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(jobs), name
        for step in job["steps"]:
            assert set(step) <= STEP_KEYS and ("run" in step) != ("uses" in step), (name, step)


def test_every_workflow_begins_with_reading_alone():
    """What a job may do besides is said where it does it."""
    assert {path.stem for path in PATHS} == {"ci", "docs", "nightly", "release"}
    for path in PATHS:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path
        assert not re.search(r"secrets\.|password", path.read_text(encoding="utf-8")), path


def test_a_release_is_checked_before_it_is_published():
    """Built once, installed on every Python, tested; then published by trust, without a secret."""
    path = WORKFLOWS / "release.yml"
    jobs, text = jobs_of(path), path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads "on" so
    assert jobs["publish"]["needs"] == ["build", "install", "tests"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert [step["uses"].split("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    pythons = jobs["install"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.9", "3.10", "3.11", "3.12", "3.13"]
    for check in ("twine check --strict", "check-wheel-contents", "GITHUB_REF_NAME"):
        assert any(check in step.get("run", "") for step in jobs["build"]["steps"]), check
    assert not re.search(r"https?://|\w+\.(org|io|com)\b", text)  # no host is named


@pytest.mark.parametrize("coverage", [None, ["mlx_trm"]])
def test_coverage_is_measured_without_workers_that_come_too_late(coverage, monkeypatch):
    """pytest-cov decides how it measures before a conftest can ask for workers, and fails then."""
    monkeypatch.setattr(conftest, "WORKER", None)
    option = SimpleNamespace(numprocesses=None, dist="no", tx=[], cov_source=coverage)
    conftest.pytest_cmdline_main(SimpleNamespace(option=option, args=[str(ROOT / "tests")]))
    assert option.numprocesses == (None if coverage else "auto")
    steps = jobs_of(WORKFLOWS / "ci.yml")["linux"]["steps"]
    assert any("pytest -n auto --dist worksteal --cov" in step.get("run", "") for step in steps)


def test_slow_tests_run_every_night():
    """On both systems; where they run, the shells are there that tests skip without."""
    jobs = jobs_of(WORKFLOWS / "nightly.yml")
    for job in jobs.values():
        assert any(step.get("run") == "python -m pytest -m slow" for step in job["steps"])


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


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_the_workflow_names_is_there(path):
    """Files of tests, presets and folders."""
    for job in jobs_of(path).values():
        for step in job["steps"]:
            for named in re.findall(r"\b(?:tests|benchmarks)/[\w./]+\w", step.get("run", "")):
                assert (ROOT / named).exists(), named
            for preset in re.findall(r"--config (\S+)", step.get("run", "")):
                assert (ROOT / "mlx_trm" / "config" / "presets" / preset).is_file(), preset


def test_each_script_is_one_that_bash_can_read(jobs):
    """What actionlint asks of shellcheck's parser; expressions of the workflow stand for words."""
    if shutil.which("bash") is None:
        pytest.skip("no bash, which is what the runners use")
    for name, job in jobs.items():
        for step in job["steps"]:
            script = re.sub(r"\$\{\{.*?\}\}", "word", step.get("run", ""))
            done = subprocess.run(
                ["bash", "-n"], input=script, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, (name, script, done.stderr)


def undefined_names(job):
    """Give what a job's ``${{ ... }}`` name that is not there."""
    text, matrix = yaml.safe_dump(job), job.get("strategy", {}).get("matrix", {})
    known = {f"matrix.{key}" for key in matrix} | {"always()"}
    found = {each.strip() for each in re.findall(r"\$\{\{(.*?)\}\}", text)}
    found |= {step["if"] for step in job["steps"] if "if" in step}
    versions = [
        str(s["with"]["python-version"])
        for s in job["steps"]
        if "setup-python" in s.get("uses", "")
    ]
    pythons = {*map(str, matrix.get("python", [])), *versions} - {"${{ matrix.python }}"}
    unused = {key for key in matrix if f"matrix.{key}" not in found}
    return (found - known) | (pythons - PYTHONS) | unused


def test_expressions_name_what_there_is(jobs):
    """A matrix's keys, and Python versions that are strings and exist: 3.10 unquoted is 3.1."""
    for name, job in jobs.items():
        assert not undefined_names(job), name
        assert len(job["steps"]) == len([s for s in job["steps"] if s.get("run") or s.get("uses")])
    wrong = {
        "strategy": {"matrix": {"python": ["3.9", 3.1], "os": ["macos-15"]}},
        "steps": [
            {
                "uses": "actions/setup-python@v5",
                "with": {"python-version": "${{ matrix.pythons }}"},
                "if": "allways()",
            }
        ],
    }
    assert undefined_names(wrong) == {"matrix.pythons", "3.1", "allways()", "os", "python"} | (
        {"${{ matrix.pythons }}"}
    )


def test_actions_have_a_version_and_artifacts_names_of_their_own(jobs):
    """Two artifacts of one name are an error of the second upload."""
    names = []
    for job in jobs.values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step
            if "upload-artifact" in step.get("uses", ""):
                names.append(step["with"]["name"])
    assert len(names) == len(set(names)) and names


def test_no_key_is_there_twice():
    """The last would count, and PyYAML would not say so."""
    problems = parse_yaml(PATH.read_text(encoding="utf-8"))[1]
    assert not problems
    assert parse_yaml("jobs: {a: 1, a: 2}")[1]
