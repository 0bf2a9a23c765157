"""The command behind tests/bench/run."""

import importlib
import json
import sys

NAMES = ("table", "blame", "connections", "daemon", "truncate", "vestigial", "guard", "routes", "ports")


def main(words: list[str]) -> int:
    """Run what is named, or everything; exit status 2 for a name that is none."""
    names = [word for word in words if word != "--json"] or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"tests/bench/run: no benchmark {unknown[0]} (there are {', '.join(NAMES)})", file=sys.stderr)
        return 2
    results = {}
    for name in names:
        for what, figures in importlib.import_module(f"tests.bench.{name}").run().items():
            results[what] = figures
            if "--json" not in words:
                print(f"{what}: {_line(figures)}", flush=True)
    if "--json" in words:
        print(json.dumps(results, indent=1))
    return 0


def _line(figures: object) -> str:
    if not isinstance(figures, dict):
        return str(figures)
    shown = [f"{key} {value}" for key, value in figures.items() if key not in {"goal", "met"}]
    goal = "" if figures.get("goal") is None else f" (goal {figures['goal']}: {'met' if figures['met'] else 'MISSED'})"
    return ", ".join(shown) + goal


sys.exit(main(sys.argv[1:]))
