"""The benchmarks; each is a module `bench_<name>` with a function `run`."""

import argparse
import importlib
import sys
import warnings

BENCHMARKS = {
    "inspect": "inspection against other readers, file by file",
    "checksum": "every byte and every value, cold beside cat, and cached",
    "build": "a cold process until all is listed",
    "live": "from rename to event",
    "fanout": "one event to 1,000 and 10,000 listeners, beside nchan and sse-starlette; --soak: for minutes",
    "list": "pages, searches and facets of 100,000 entries, quiet and while entries change",
    "page": "the page in headless Chromium with 100,000 checkpoints",
    "snapshot": "200 clients take 100,000 entries while others listen",
    "validate": "ckptd validate on 10,000 small checkpoints",
    "metadata": "ckptd metadata: 10,000 missing sidecars, 60 rebuilt, beside a plain loop",
    "callback": "a Lightning training with and without its metadata, side by side",
    "saving": "checkpoints saved with and without their digest, side by side",
    "soak": "everything at once, with restarts and faults; what is wrong, memory, descriptors; --minutes, --directory",
    "faults": "the fault campaign: who finds what, as a Markdown table",
}


def main() -> int:
    """Run one benchmark; 0 whatever it measures: figures are for people, not for gates."""
    what = "\n".join(f"  {name:10} {summary}" for name, summary in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=tuple(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer repetitions")
    parser.add_argument("--seed", type=int, default=20260101, help="of faults and soak (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="of the soak (default: %(default)s)")
    parser.add_argument("--directory", help="where the soak works (default: that of temporary files)")
    parser.add_argument("--soak", action="store_true", help="fanout: five minutes with a tenth that never reads")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"bench_{options.which}")
    if options.which == "faults":
        module.run(quick=options.quick, seed=options.seed)
    elif options.which == "soak":
        module.run(quick=options.quick, minutes=options.minutes, seed=options.seed, directory=options.directory)
    elif options.which == "fanout":
        module.run(quick=options.quick, soak=options.soak)
    else:
        module.run(quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
