"""
`scripts/chaos --seed 7 --jobs 5000`: run a seed, print what was injected and how the jobs ended; 1 when something is wrong.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from chaos.drive import EPOCH, run


def main() -> int:
    """
    Run it.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="by chance unless given; it is printed")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--epoch", type=int, default=EPOCH, help="jobs after which the weather turns")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}, {asked.jobs} jobs", flush=True)
    with tempfile.TemporaryDirectory(prefix="comfy-chaos-") as folder:
        report = run(seed, asked.jobs, Path(folder), asked.epoch)
    print("\n".join(report.lines()))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
