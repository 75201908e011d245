"""The benchmarks: `inspect` against other readers, `build` from a cold process, `live` from rename to event."""

import argparse
import sys
import warnings


def main() -> int:
    """Run one benchmark; 0 whatever it measures: figures are for people, not for gates."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("which", choices=("inspect", "build", "live"))
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer repetitions")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.which == "inspect":
        from bench_inspect import run
    elif options.which == "build":
        from bench_build import run
    else:
        from bench_live import run
    run(quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
