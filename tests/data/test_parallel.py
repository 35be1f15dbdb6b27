"""Helper processes end with the one that has started them, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

JOB = """
import os, signal
from medusa_cl.data.parallel import in_order

def work(number):
    return os.getpid()

if __name__ == "__main__":
    for helper in in_order(range(40), work, workers=2):
        print(helper, flush=True)
        if helper != os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_helpers_do_not_outlive_a_process_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    # A file, not a pipe: helpers that live on would hold a pipe open, and this test with it.
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, str(script)], stdout=out, stderr=out, check=False, timeout=120)
    helper = int((tmp_path / "out").read_text().split()[0])
    for _ in range(300):
        if not _lives(helper):
            return
        time.sleep(0.1)
    raise AssertionError(f"{helper} is still there after 30 s")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
