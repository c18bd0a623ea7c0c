"""Driver of the Ray Serve application: starts a Ray of its own, and deploys the application once for each line that it
reads, which has its arguments as JSON; ends both when there are no more.
"""

import json
import sys

import ray
from ray import serve

from deploy.ray.app import app
from deploy.ray.options import Options


def main() -> None:
    """Serve on the port of the command line."""
    ray.init("local", num_cpus=4, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        for line in sys.stdin:
            serve.run(app(Options(**json.loads(line))), name="toolwire", route_prefix="/")
            print("deployed", flush=True)
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
