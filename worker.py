"""
The PyWorker of Vast.ai, as its start script runs it: `python -m worker` in a clone of this repository.

Needs Python 3.10 and what requirements.txt names; the model server it stands before runs already.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER / "src"))

if __name__ == "__main__":
    from comfy_worker.pyworker import program

    raise SystemExit(program.main(sys.argv[1:], os.environ, FOLDER))
