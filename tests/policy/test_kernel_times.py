"""benchmarks/kernel_times.py: what a profiler's trace says of a step's kernels, and of waiting."""

import ctypes
import importlib
import itertools
import json
import re
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Dict, Iterator, List

import pytest
from child_processes import run_python
from paths import ROOT

from mlx_trm.errors import ConfigError

FOLDER = ROOT / "benchmarks"


@pytest.fixture(name="times")
def _times(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("kernel_times")


def event(name: str, begin: float, took: float, kind: str = "kernel") -> Dict[str, Any]:
    """One of a trace, in microseconds."""
    return {"cat": kind, "name": name, "ts": begin, "dur": took}


# Two products of which one runs beside the other's second half, a copy, and what is no kernel.
TRACE = {
    "traceEvents": [
        event("nvjet_tst_128x256", 110, 20),
        event("nvjet_tst_128x256", 100, 20),
        event("Memcpy HtoD", 200, 5, "gpu_memcpy"),
        event("add_norm", 140, 10),
        event("cudaLaunchKernel", 0, 500, "cuda_runtime"),
        {"ph": "M", "name": "process_name"},
    ]
}


@pytest.mark.parametrize(
    "name, kind",
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopB_NTT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu>", "products"),
        ("swiglu_product", "products"),
        ("swiglu_backward", "swiglu"),
        ("triton_poi_fused_mul_silu_split_3", "swiglu"),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64>, "
         "cutlass::bfloat16_t>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("long_attention_backward", "attention"),
        ("join_gradients", "attention"),
        ("rope_keys", "attention"),
        ("mlp_t_wgmma_backward", "position half"),
        ("norm_backward_positions", "norms"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_2", "norms"),
        ("void mlx::core::cu::binary_vv<mlx::core::cu::Multiply, float>", "everything else"),
    ],
)  # fmt: skip
def test_kinds(times: Any, name: str, kind: str) -> None:
    """By words of the name, attention's first: its kernels are made of products."""
    assert times.kind_of(name) == kind


def test_every_kernel_of_the_package_has_a_kind(times: Any) -> None:
    """But the one that looks for NaN."""
    pattern = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(')
    files = sorted((ROOT / "mlx_trm" / "nn" / "cuda").rglob("*.cu"))
    names = [n for file in files for n in pattern.findall(file.read_text(encoding="utf-8"))]
    assert len(names) > 20
    assert [name for name in names if times.kind_of(name) == times.ELSE] == ["find_nonfinite"]


def test_a_trace_is_read(times: Any) -> None:
    """Kernels beside each other count once as time in which the GPU is busy."""
    kernels, busy = times.read_trace(TRACE)
    assert {name: pytest.approx(each) for name, each in kernels.items()} == {
        "nvjet_tst_128x256": [20e-6, 20e-6], "add_norm": [10e-6], "Memcpy HtoD": [5e-6]
    }  # fmt: skip
    assert busy == pytest.approx(45e-6)


@pytest.fixture(name="torch")
def fake_torch(times: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A PyTorch whose profiler records TRACE; half a second goes by whenever the clock is read."""
    ticks = itertools.count(0.5, 0.5)
    monkeypatch.setattr(times, "time", SimpleNamespace(perf_counter=ticks.__next__))
    order: List[Any] = []

    @contextmanager
    def profile(activities: List[str], schedule: Dict[str, int]) -> Iterator[Any]:
        assert activities == ["cuda"] and schedule == {"wait": 0, "warmup": 1, "active": 1}

        def export(path: str) -> None:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(TRACE, file)

        yield SimpleNamespace(export_chrome_trace=export, step=partial(order.append, "step"))

    cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: None, order=order)
    profiler: Any = ModuleType("torch.profiler")
    profiler.profile, profiler.ProfilerActivity = profile, SimpleNamespace(CUDA="cuda")
    profiler.schedule = dict
    torch: Any = ModuleType("torch")
    torch.cuda, torch.zeros, torch.profiler = cuda, lambda *_, **__: None, profiler
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.profiler", profiler)
    return cuda


def test_kernels_of_a_step(
    times: Any, torch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds by kind, launches and the seconds with a kernel, of a step, after a second of work.

    The steps' own time is that of two seconds of work before, which begin when it is warm.
    """
    note = times.record(torch.order.append, 64, 2)
    assert torch.order == [64, 64, 64, 64, 64, "step", times.UNITS] and times.UNITS == 4
    assert note["seconds"] == pytest.approx(2.0 / 3 / 64 / 2)
    assert note["waits"] == pytest.approx(note["seconds"] - note["busy"])
    each = 1e-6 / 4 / 2
    assert note["kinds"]["products"] == pytest.approx(40 * each)
    assert note["kinds"]["norms"] == pytest.approx(10 * each)
    assert note["kinds"][times.ELSE] == pytest.approx(5 * each)
    assert note["kinds"]["attention"] == 0.0
    assert note["launches"] == 4 / 4 / 2 and note["busy"] == pytest.approx(45 * each)
    assert note["longest"][0] == ["nvjet_tst_128x256", 0.25, pytest.approx(40 * each)]
    text = times.summary({**note, "seconds": 30e-6, "waits": 30e-6 - note["busy"]})
    assert text.startswith("0.03 ms in 0 launches: products 0.005, norms 0.00125, ")
    assert text.endswith("everything else 0.000625; waits 0.0244")
    assert note["joules"] is note["watts"] is note["power_limit"] is None
    power = {"watts": 688.4, "power_limit": 700.0, "joules": 6}
    assert times.summary({**note, **power}).endswith("; 688 of 700 W, 6 J")
    assert " W" not in times.summary({**note, **power, "power_limit": None})
    monkeypatch.setitem(TRACE, "traceEvents", [event("longer than the step", 0, 1e9)])
    assert times.record(torch.order.append, 64, 2)["waits"] == 0.0


def test_power_is_that_of_some_seconds(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the driver's counter, of whole steps, and not where power is only sampled."""
    energy = importlib.import_module("energy")
    clock = SimpleNamespace(now=10.0)
    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByIndex_v2=lambda number, handle: 0,
        nvmlDeviceGetTotalEnergyConsumption=lambda _, found: write(found, 600_000 * clock.now),
        nvmlDeviceGetEnforcedPowerLimit=lambda _, found: write(found, 700_000),
    )

    def write(found: Any, value: float) -> int:
        found._obj.value = int(value)
        return 0

    def run(count: int) -> None:
        clock.now += 0.25 * count

    monkeypatch.setattr(times, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    power = {
        "joules": pytest.approx(600 * 0.25 / 2), "watts": pytest.approx(600), "power_limit": 700
    }  # fmt: skip
    assert times.measure_power(run, 3, 2, ["0"]) == {"seconds": 0.25 / 2, **power}
    assert clock.now == 10 + 0.75 + 3 * 0.75  # warm first, and then for two seconds and more
    two = times.measure_power(run, 3, 2, ["0", "1"])
    assert two["watts"] == pytest.approx(1200) and two["power_limit"] == 1400
    library.nvmlDeviceGetEnforcedPowerLimit = lambda _, found: 3
    assert times.measure_power(run, 3, 2, ["0"])["power_limit"] is None
    nothing = {"seconds": 0.25 / 2, **dict.fromkeys(power)}
    assert times.measure_power(run, 3, 2, []) == nothing
    for codes in ([0, 1], [0, 0, 1]):  # when it begins, and when it ends
        failing = iter(codes)
        library.nvmlDeviceGetTotalEnergyConsumption = lambda _, found, codes=failing: (
            write(found, 600_000 * clock.now) or next(codes)
        )
        assert times.measure_power(run, 3, 2, ["0"]) == nothing
    monkeypatch.setattr(
        energy.Meter, "_find_source", lambda self: setattr(self, "source", energy.SAMPLES)
    )
    monkeypatch.setattr(energy, "_Sampler", None)  # is not begun
    assert times.measure_power(run, 3, 2, ["0"]) == nothing


def test_without_cuda_it_says_what_is_missing(
    times: Any, torch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each."""
    torch.is_available = lambda: False
    with pytest.raises(RuntimeError, match="python.* has a PyTorch without CUDA"):
        times.record(print, 1, 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match="python.* has no PyTorch with CUDA .import of torch"):
        times.record(print, 1, 1)


@pytest.mark.usefixtures("torch")
def test_an_empty_trace_is_no_result(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the GPU would have waited all the time."""
    monkeypatch.setitem(TRACE, "traceEvents", TRACE["traceEvents"][-2:])
    with pytest.raises(RuntimeError, match="recorded no kernel"):
        times.record(lambda _: None, 1, 1)


@pytest.mark.usefixtures("torch")
def test_a_worker_records_them(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the steps that the work says it has, and holds its memory no longer than that."""
    protocol = importlib.import_module("protocol")
    ended: List[str] = []
    close = partial(ended.append, "closed")
    work = protocol.Work(lambda count: None, lambda: {"steps_in_unit": 5}, close=close)
    side = SimpleNamespace(peak=lambda: 1, empty_cache=partial(ended.append, "emptied"))
    held, job = {"eval tiny 8": work}, {"case": "eval", "size": "tiny", "batch": 8}

    def answer(do: str, **more: Any) -> Any:
        return protocol._answer(side, held, {"do": do, "job": job, **more})

    assert answer("finish", keep=True)["facts"] == {"steps_in_unit": 5}
    assert held and ended == ["emptied"]
    with monkeypatch.context() as patched:
        patched.setattr(times, "measure_power", lambda *words: {"seconds": 1.0, "told": words})
        reply = answer("kernels", gpus=["3"])["kernels"]
    assert reply["told"] == (work.run, 1, 5, ["3"])
    assert not held and ended[1:] == ["closed", "emptied"]
    held.update({"eval tiny 8": work})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match="no PyTorch"):
        answer("kernels", gpus=[])
    assert not held and ended[3:] == ["closed", "emptied"]
    held.update({"eval tiny 8": work})
    answer("finish", keep=False)
    assert not held


def test_the_suite_writes_them(
    times: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the result, which is there where they cannot be recorded, and that is said."""
    del times
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run, results = (importlib.import_module(name) for name in ("run", "results"))
    words = ["--device", "cpu", "--sizes", "tiny:8", "--repeats", "1", "--output", str(tmp_path)]
    suite = run.Suite(run.arguments("").parse_args([*words, "--cases", "train"]))
    suite.args.kernels, suite.machine, suite.path = True, "m", tmp_path / "m.jsonl"
    suite.held.update(rates={"flops": 1e12, "bandwidth": 1e12}, versions={})
    found = {"kinds": {"products": 0.01}, "launches": 6.0, "seconds": 0.05, "waits": 0.03}
    facts = {"steps_in_unit": 2}
    replies: Dict[str, Any] = {
        "time": {"seconds": 0.1},
        "finish": {"peak_memory": 5, "facts": facts},
        "kernels": {"kernels": found},
    }
    calls: List[str] = []

    def call(what: str, job: Any, **more: Any) -> Any:
        assert job["case"] == "train" and more.get("keep", True)
        assert what != "kernels" or more["gpus"] == ["0"]
        calls.append(what)
        if isinstance(replies[what], Exception):
            raise replies[what]
        return replies[what]

    where = run.Combination("tiny", 8, {results.OURS: SimpleNamespace(call=call)})
    suite.held[(results.OURS, "train tiny 8")] = {}
    suite.time_case(where, "train")
    result, kernels = results.read(suite.path)
    assert calls == ["time", "finish", "kernels"]
    assert result["kind"] == "result"
    assert (result["seconds"]["median"], result["peak_memory"]) == (0.05, 5)
    assert (kernels["kind"], kernels["case"], kernels["batch"]) == ("kernels", "train", 8)
    assert found.items() <= kernels.items()
    assert "    mlx_trm: 50 ms in 6 launches: products 10; waits 30" in capsys.readouterr().out
    replies["kernels"] = run.WorkerError("mlx_trm ended with -11: no word")
    suite.time_case(where, "train")
    kinds = [line["kind"] for line in results.read(suite.path)]
    assert kinds == ["result", "kernels", "result"]
    assert suite.failed == ["kernels of train tiny 8, mlx_trm: mlx_trm ended with -11: no word"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["train"], "--kernels: needs an NVIDIA GPU, with MLX's CUDA backend"),
        (["train", "eval"], "--kernels: name one case, train or eval: recording may slow others"),
        (["solve"], "--kernels: name one case, train or eval"),
    ],
)
def test_what_cannot_be_recorded_is_refused(words: List[str], message: str) -> None:
    """One line before anything is measured."""
    done = run_python(FOLDER / "run.py", "--device", "cpu", "--kernels", "--cases", *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_pytorch_has_to_be_there(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for before anything is measured."""
    del times
    options = importlib.import_module("options")
    monkeypatch.setattr(options, "on_cuda", lambda: True)
    args = options.arguments("").parse_args(["--cases", "eval", "--kernels", "--device", "cpu"])
    monkeypatch.setattr(options, "find_spec", lambda name: object())
    options.check_kernels(args)
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--kernels: needs PyTorch with CUDA; .* has none"):
        options.check_kernels(args)
