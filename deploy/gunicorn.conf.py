"""gunicorn in front of the gateway: two workers that share limits and cache in Redis, and their counts in a folder."""

import os
import shutil
import tempfile
from pathlib import Path

bind = os.environ.get("GUNICORN_BIND", "0.0.0.0:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
worker_class = "uvicorn_worker.UvicornWorker"
# Longer than serve.drain: answers under way go on to their end before a worker ends.
graceful_timeout = 90
timeout = 120
control_socket_disable = True
# Behind a proxy on another machine, name its address here: whose X-Forwarded-For is believed.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")

_folder = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(Path(tempfile.gettempdir()) / "tuneloop-metrics"))
shutil.rmtree(_folder, ignore_errors=True)  # counts of an earlier start
Path(_folder).mkdir(parents=True, mode=0o700)


def child_exit(server, worker):
    """A worker that has ended is no longer counted among the living."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
