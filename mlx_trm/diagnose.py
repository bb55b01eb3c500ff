"""``python -m mlx_trm.diagnose``: report the system, MLX and its devices, and try them."""

import argparse
import sys
from typing import Any, Dict, List, Tuple

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_json, save_json
from mlx_trm.cli.running import make_main
from mlx_trm.cli.selftest import add_selftest, try_machine
from mlx_trm.system.report import device_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_json(parser, "also write the report there")
    add_selftest(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report, its warnings last; exit code 1 where a product or a check was wrong."""
    if args.trying or args.child is not None:
        return try_machine(args)
    report = device_report()
    if args.json is not None:
        save_json(args.json, report)
    if not args.quiet:
        print(display.table(rows(report)))
        print()
        print(display.table(*products(report)))
    for warning in report["warnings"]:
        print(f"{'' if args.quiet else chr(10)}warning: {warning}")
    return 0 if all(product["right"] for product in report["matmul"]) else 1


def rows(report: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Lay the report out as (name, value)."""
    system, devices, memory = report["platform"], report["devices"], report["memory"]
    macos = f", macOS {system['macos']}" if system["macos"] else ""
    found = list(report["versions"].items())
    found += [
        ("backend", pairs(report["backends"]) or "none found among the installed packages"),
        ("system", f"{system['description']}{macos}"),
        ("processor", f"{system['processor']}, {system['cores']} cores"),
        ("memory", memory_text(memory["total"], memory["available"])),
        ("default device", devices["default"]),
        ("GPU", (pairs(devices["gpu"]) or "available") if devices["gpu_available"] else "none"),
        ("BLAS", report["blas"] or "unknown"),
        ("C++ compiler", report["compiler"] or "none"),
        ("environment", pairs(report["environment"], "=") or "nothing set"),
    ]
    return found


def products(report: Dict[str, Any]) -> Tuple[List[List[str]], List[str]]:
    """Lay the measured products out as rows and a header."""
    table = []
    for entry in report["matmul"]:
        error = "-" if entry["error"] is None else f"{entry['error']:.1e}"
        speed = "-" if entry["gflops"] is None else f"{entry['gflops']:.1f}"
        state = "right" if entry["right"] else "WRONG"
        table.append([entry["device"], entry["dtype"], state, error, speed])
    return table, ["device", "matrix product", "result", "error", "GFLOP/s"]


def pairs(values: Dict[str, Any], between: str = " ") -> str:
    """Write a mapping on one line."""
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


def memory_text(total: Any, available: Any) -> str:
    """Write the memory, as far as it is known."""
    if total is None:
        return "unknown"
    free = "" if available is None else f", {display.size(available)} available"
    return f"{display.size(total)}{free}"


main = make_main("diagnose", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
