"""One Ray Serve application: the API as ingress, engines as a deployment that grows with the requests that wait.

    serve run deploy.ray.app:app                                            two engines of the tiny model
    serve run deploy.ray.app:app model=Qwen/Qwen3-8B engine_gpus=1 max_engines=8

API replicas connect to the engines themselves and choose by prefix, as with `toolwire serve --engine`: a reply whose
engine is lost goes on at another one. docs/scaling.md describes it.
"""

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deploy.ray.api import Api
from deploy.ray.engine import Engine, engines_for_load
from deploy.ray.options import Options

HEALTH_INTERVAL_S = 2.0
METRICS_INTERVAL_S, LOOK_BACK_S = 1.0, 5.0
MAX_REQUESTS = 10_000  # of one API replica: its own limits (--max-pending-requests, the engines' queues) are lower


def app(options: Options) -> Application:
    """The application, for `serve run`, `serve deploy` and `serve.run`."""
    stop_s = options.drain_timeout_s + 20  # an engine that does not end in time is killed before
    engines = serve.deployment(
        Engine,
        name="Engine",
        ray_actor_options={"num_cpus": options.engine_cpus, "num_gpus": options.engine_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_engines,
            initial_replicas=options.min_engines,
            max_replicas=options.max_engines,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
            policy=AutoscalingPolicy(policy_function=engines_for_load),
        ),
        health_check_period_s=HEALTH_INTERVAL_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=stop_s,
    )
    api = serve.deployment(
        serve.ingress(Api(options))(),
        name="Api",
        num_replicas=options.api_replicas,
        ray_actor_options={"num_cpus": options.api_cpus},
        max_ongoing_requests=MAX_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=stop_s,
    )
    return api.bind(engines.bind(options))  # it sends the engines nothing; bound, both are one application
