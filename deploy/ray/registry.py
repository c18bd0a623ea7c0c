"""Registry of the engines of one Ray Serve application: an actor that engines report to once a second."""

import os

import ray
from ray.actor import ActorHandle

from deploy.ray.engine_table import EngineTable

NAMESPACE = "toolwire"


def own_key() -> str:
    """The key of TOOLWIRE_ENGINE_KEY, which a replica uses whatever others do; empty: it asks the registry."""
    return os.environ.get("TOOLWIRE_ENGINE_KEY", "")


def open_registry(application: str) -> ActorHandle:
    """The registry of the application with this name; it outlives the replicas, and is restarted where it fails."""
    options = {"name": f"engines-of-{application}", "namespace": NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(EngineTable)
    return actor.options(**options, get_if_exists=True).remote()
