"""Run a module as a program, and print the threads of its numerical libraries as one JSON line at its end.

python tests/harness/thread_pools.py pipeline.app.cli run --set key=value ...
"""

import atexit
import json
import runpy
import sys

from threadpoolctl import threadpool_info


def show() -> None:
    torch = sys.modules.get("torch")
    pools = [
        {"library": pool["filepath"], "kind": pool["user_api"], "threads": pool["num_threads"]}
        for pool in threadpool_info()
    ]
    print(json.dumps({"pools": pools, "torch": torch.get_num_threads() if torch else None}))


if __name__ == "__main__":
    atexit.register(show)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__")
