"""Time that `import tfopt` adds to `import keras`, in new processes that find its bytecode, as those of users do."""

import os
import subprocess
import sys

from common import Target, arguments, finish, spread, table

LIMIT = 0.15  # seconds of processor time
TURNS = 9
PROGRAM = """
import time
import keras
start = time.process_time()
import tfopt
print(time.process_time() - start)
"""


def main() -> int:
    options = arguments(__doc__)
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    quiet.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, env=quiet)  # writes the bytecode
    seconds = [
        float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, env=quiet).stdout)
        for _ in range(1 if options.quick else TURNS)
    ]
    body = table(["import", "s of processor time, median (range)"], [["tfopt, after keras", spread(seconds)]])
    # The lowest: what else runs on the machine can only add to it.
    return finish(
        "import_cost", __doc__, body, {"seconds": seconds}, [Target("lowest, in s", min(seconds), LIMIT)], options
    )


if __name__ == "__main__":
    sys.exit(main())
