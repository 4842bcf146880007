"""What `/metrics` says after a known sequence of pulls and pushes, as Prometheus reads it."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import EXPORTS_ONLY, Push, PushedImage
from tests.integration.support import images
from tests.integration.support.browser import eventually
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.slow import slowly
from tests.integration.support.upstream import Upstream

pytestmark = pytest.mark.engines("docker29")

MB = 1000 * 1000


@pytest.fixture
def fresh(engine: EngineAddress, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that has counted nothing yet, has no way to images but exports, and little room."""
    with running(engine, tmp_path, *EXPORTS_ONLY, "--cache-size", "64MiB") as daemon:
        yield daemon


def ask(daemon: Daemon, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(daemon.host, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


class Metrics(dict[str, float]):
    """Samples by `name` or `name{value,value}`, the labels' values in the order of their names.  None told: 0."""

    def __init__(self, daemon: Daemon) -> None:
        status, self.text = ask(daemon, "/metrics")
        assert status == 200
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                values = ",".join(value for _, value in sorted(sample.labels.items()))
                self[f"{sample.name}{{{values}}}" if values else sample.name] = sample.value

    def __missing__(self, key: str) -> float:
        return 0.0


def test_pulls_and_pushes_are_counted(
    engine: EngineAddress, fresh: Daemon, small_image: PushedImage, busybox: bytes
) -> None:
    puller = Puller(fresh.host, small_image.registry)
    repository = small_image.repository
    small_image.remove_from(engine)
    # Docker pulls it; then it is exported, once; the second time all of it is in the cache.
    size = puller.image(repository, "1")
    pulled = Metrics(fresh)
    manifest = len(puller.manifest(repository, "1").body)
    puller.image(repository, "1")
    assert puller.manifest(repository, "nowhere").status == 404
    # Two layers and a config: each is looked for, and what is not here comes by POST and PUT; then the manifest.
    Upstream(fresh.host).push_image("team/metrics", "1", images.small_layers(busybox, "metrics"), images.COMMAND)
    found = Metrics(fresh)

    assert pulled["k3dreg_work_total{pull,ok}"] == found["k3dreg_work_total{pull,ok}"] == 1
    assert found["k3dreg_work_total{pull,failed}"] == 1
    assert found["k3dreg_work_total{export,ok}"] == 1
    assert found["k3dreg_work_duration_seconds_count{export}"] == 1
    assert found["k3dreg_work_duration_seconds_sum{pull}"] > 0
    assert found["k3dreg_work_bytes_total{export}"] >= size
    given = sum(value for name, value in found.items() if name.startswith("k3dreg_sent_bytes_total"))
    assert given == 2 * size + 3 * manifest
    assert found["k3dreg_sent_bytes_total{cache}"] >= size + 2 * manifest
    answers = sum(value for name, value in found.items() if name.startswith("k3dreg_content_answers_total"))
    assert answers >= 3 + 6
    assert found["k3dreg_requests_total{GET,manifest,200}"] == 3
    assert found["k3dreg_requests_total{GET,blob,200}"] == 6
    assert found["k3dreg_requests_total{GET,manifest,404}"] == 1
    assert found["k3dreg_requests_total{PUT,manifest,201}"] == 1
    assert found["k3dreg_requests_total{POST,upload,202}"] == found["k3dreg_requests_total{PUT,upload,201}"] > 0
    assert found["k3dreg_request_duration_seconds_count{manifest}"] >= 5
    assert found["k3dreg_refusals_total{ManifestUnknown}"] + found["k3dreg_refusals_total{NameUnknown}"] == 1
    # The client is no node.
    assert found["k3dreg_pulls_total{other,sent}"] == 2
    assert found["k3dreg_engine_up"] == 1
    assert found["k3dreg_cache_limit_bytes"] == 64 * 1024 * 1024
    assert size <= found["k3dreg_cache_bytes"] <= 64 * 1024 * 1024
    assert "other" not in {name.partition("{")[2].rstrip("}") for name, value in found.items() if value}

    promtool = shutil.which("promtool")
    if promtool is None and os.environ.get("CI") != "true":
        pytest.skip("needs promtool: Debian's prometheus")
    assert promtool, "Debian's prometheus, and CI=true"
    told = subprocess.run([promtool, "check", "metrics"], input=found.text, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_what_is_evicted_is_counted(engine: EngineAddress, fresh: Daemon, push: Push) -> None:
    """Two layers, of which there is room for one."""
    size, layers = 40 * MB, []
    for number in (1, 2):
        layer = images.LayerMaker({})
        layer.file(f"large{number}", images.noise(size, f"evicted {number}"))
        layers.append(layer.layer(None))
    image = push("k3dreg-test/evicted", layers, "")
    docker = image.pull_into(engine)
    Puller(fresh.host, image.registry).image(image.repository, "1")
    eventually(lambda: Metrics(fresh)["k3dreg_cache_bytes"] <= 64 * 1024 * 1024)
    docker.remove(image.name)
    found = Metrics(fresh)
    assert found["k3dreg_evicted_blobs_total"] >= 1
    assert found["k3dreg_evicted_bytes_total"] >= size
    assert found["k3dreg_evicted_bytes_total"] + found["k3dreg_cache_bytes"] >= 2 * size


def test_a_pull_that_is_waited_for_is_seen_with_those_who_wait(
    engine: EngineAddress, fresh: Daemon, upstream: Upstream, push: Push, busybox: bytes
) -> None:
    large = images.LayerMaker({})
    large.file("large", images.noise(2 * MB, f"metrics {uuid.uuid4()}"))
    pushed = push("k3dreg-test/metrics", [*images.small_layers(busybox, "metrics"), large.layer(None)], "metrics")
    with slowly(upstream.address, MB // 2) as detour:
        image = evolve(pushed, registry=detour)
        image.remove_from(engine)
        clients = [
            threading.Thread(target=lambda: Puller(fresh.host, detour).manifest(image.repository, "1"))
            for _ in range(3)
        ]
        for client in clients:
            client.start()
        try:
            eventually(lambda: Metrics(fresh)["k3dreg_work_waiters{pull}"] == 3)
            assert Metrics(fresh)["k3dreg_work_in_progress{pull}"] == 1
        finally:
            for client in clients:
                client.join(60)
            image.remove_from(engine)
    ended = Metrics(fresh)
    assert (ended["k3dreg_work_in_progress{pull}"], ended["k3dreg_work_waiters{pull}"]) == (0, 0)
    assert ended["k3dreg_work_total{pull,ok}"] == 1
