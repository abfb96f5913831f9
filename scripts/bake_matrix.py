"""
Prints the targets of a group of docker-bake.hcl as a matrix for GitHub's workflows: `bake_matrix.py GROUP [LARGE_RUNNER]`.

A target that GitHub's own runners have no room for goes to LARGE_RUNNER; without one it is left out with a notice.
"""

import json
import os
import shlex
import subprocess
import sys

HOSTED = "ubuntu-24.04"


def targets(group: str) -> list[str]:
    """
    Return the targets of a group. BUILDX is the command, `docker buildx` by default.
    """
    command = [*shlex.split(os.environ.get("BUILDX", "docker buildx")), "bake", "--print", group]
    plan = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return list(json.loads(plan)["target"])


def matrix(wanted: list[str], small: list[str], large_runner: str) -> dict[str, list[dict[str, str]]]:
    """
    Return the matrix: a target and the runner it is built on, for each target that has one.
    """
    runners = {target: HOSTED if target in small else large_runner for target in wanted}
    return {"include": [{"target": target, "runner": runner} for target, runner in runners.items() if runner]}


def main(group: str, large_runner: str = "") -> None:
    """
    Print the matrix on one line.
    """
    wanted, small = targets(group), targets("small")
    found = matrix(wanted, small, large_runner)
    for target in set(wanted) - {row["target"] for row in found["include"]}:
        print(f"::notice::{target} is left out: set the variable LARGE_RUNNER to build it", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
