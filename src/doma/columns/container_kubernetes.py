"""Images as Kubernetes Jobs, over the API server's REST; files pass through a volume that both sides mount.

Source: Kubernetes API reference, ``batch/v1 Job`` and ``v1 Pod``; pod security standard "restricted".
"""

import ssl
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from doma.columns.container_run import TAIL, Ended, Order
from doma.core.config import Container
from doma.core.errors import LimitExceeded, ServiceUnavailable
from doma.core.text import line_of, printed

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the authority of its API server."""
TROUBLE = 5
"""Polls in a row that may fail."""


class KubernetesRunner:
    """Runs each file as a Job of its own, and removes it."""

    poll = 1.0
    """Seconds between two looks at a job."""

    def __init__(self, settings: Container) -> None:
        self._settings = settings

    def run(self, order: Order, tick: Callable[[], None]) -> Ended:
        name = f"doma-{uuid.uuid4().hex[:20]}"
        jobs = f"/apis/batch/v1/namespaces/{self._settings.namespace}/jobs"
        with self._client() as client:
            try:
                _asked(client, "POST", jobs, json=manifest(name, order, self._settings))
                code = self._waited(client, f"{jobs}/{name}", order, tick)
                return self._ended(client, name, code, order)
            finally:
                # Also after a creation without an answer; the limit of its life ends it anyway.
                _removed(client, f"{jobs}/{name}")

    def _client(self) -> httpx.Client:
        s = self._settings
        token = Path(s.token_file or ACCOUNT / "token")
        authority = Path(s.ca_file) if s.ca_file else ACCOUNT / "ca.crt"
        try:
            text = token.read_text(encoding="ascii").strip()
            trust = (
                ssl.create_default_context(cafile=str(authority)) if s.server.startswith("https:") else False
            )
        except (OSError, ValueError) as e:
            raise ServiceUnavailable(
                f"kubernetes: no usable service account: {e}; see token_file, ca_file"
            ) from e
        headers = {"Authorization": f"Bearer {text}"}
        return httpx.Client(base_url=s.server, headers=headers, verify=trust, timeout=30, trust_env=False)

    def _waited(self, client: httpx.Client, job: str, order: Order, tick: Callable[[], None]) -> bool | None:
        """Whether the job succeeded; None when it did not end in time."""
        deadline, failures = time.monotonic() + order.timeout, 0
        while time.monotonic() < deadline:
            tick()
            try:
                status = _asked(client, "GET", job).get("status") or {}
                failures = 0
            except ServiceUnavailable:
                failures += 1
                if failures >= TROUBLE:
                    raise
                status = {}
            conditions = {
                c.get("type"): c for c in status.get("conditions") or [] if c.get("status") == "True"
            }
            if "Complete" in conditions:
                return True
            if "Failed" in conditions:
                return None if conditions["Failed"].get("reason") == "DeadlineExceeded" else False
            time.sleep(self.poll)
        return None

    def _ended(self, client: httpx.Client, name: str, done: bool | None, order: Order) -> Ended:
        pods = f"/api/v1/namespaces/{self._settings.namespace}/pods"
        found = _asked(client, "GET", pods, params={"labelSelector": f"job-name={name}"}).get("items") or []
        log, code = "", 0 if done else 1
        for pod in found[:1]:
            path = f"{pods}/{pod['metadata']['name']}/log"
            answer = client.get(path, params={"limitBytes": TAIL, "tailLines": 1000})
            log = printed(answer.content[-TAIL:]) if answer.is_success else ""
            for status in pod.get("status", {}).get("containerStatuses") or []:
                ended = status.get("state", {}).get("terminated") or {}
                code = int(ended.get("exitCode", code)) if not done else 0
        if done is None:
            raise LimitExceeded(
                f"{order.image}: not finished after {order.timeout:.0f} s; it was stopped", log=log
            )
        return Ended(code, log)


def manifest(name: str, order: Order, settings: Container) -> dict[str, Any]:
    """The Job: one pod, once, without rights, token or a way to the API server, three folders of the volume.

    A network policy of the cluster may refuse the label ``doma-network: none`` any connection.
    """
    below = order.folder.name
    mounts = [
        {
            "name": "work",
            "mountPath": place,
            "subPath": f"{below}/{kind.name}",
            "readOnly": kind != order.output.parent,
        }
        for place, kind in (
            ("/generated", order.generated),
            ("/input", order.input.parent),
            ("/output", order.output.parent),
        )
    ]
    limits = {"cpu": settings.cpu, "memory": f"{settings.memory}"}
    container = {
        "name": "transformer",
        "image": order.image,
        "command": order.command("/generated", "/input", "/output"),
        "workingDir": "/output",
        "volumeMounts": mounts,
        "resources": {"requests": limits, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": settings.claim}}],
    }
    labels = {"app.kubernetes.io/managed-by": "doma", "doma-network": "none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": max(1, int(order.timeout)),
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _asked(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    try:
        answer = client.request(method, path, **options)
    except httpx.HTTPError as e:
        raise ServiceUnavailable(f"kubernetes: the API server does not answer: {type(e).__name__}") from e
    if not answer.is_success:
        raise ServiceUnavailable(f"kubernetes: {method} {path}: {answer.status_code}: {line_of(answer.text)}")
    try:
        found = answer.json()
    except ValueError as e:
        raise ServiceUnavailable(f"kubernetes: {path}: the API server answers no JSON") from e
    return found if isinstance(found, dict) else {}


def _removed(client: httpx.Client, job: str) -> None:
    """Delete a job with its pod; one that is gone, or a server that is, is no trouble now."""
    try:
        client.delete(job, params={"propagationPolicy": "Background"})
    except httpx.HTTPError:
        return
