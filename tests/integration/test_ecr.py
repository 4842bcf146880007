"""ECR: tokens from an AWS that is moto's server, through botocore and through AWS's own helper, to real engines.

    pytest tests/integration/test_ecr.py

The helper is found on the PATH, or named by K3DREG_TEST_ECR_HELPER; it must be 0.8 or newer (AWS_ENDPOINT_URL).
See test_ecr_pull.py for the whole way.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from k3dreg.credentials.chain import CredentialChain
from k3dreg.credentials.ecr import EcrCredentials
from k3dreg.credentials.ecr_hosts import EcrHost
from k3dreg.credentials.ecr_tokens import TokenFailed, fetch_token
from k3dreg.credentials.helpers import HelperRunner
from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.streaming.workers import Workers
from tests.fakes.upstream import FakeUpstream
from tests.integration.support import rig
from tests.integration.support.docker_api import Docker, DockerError
from tests.integration.support.images import LayerMaker
from tests.integration.support.upstream import to_json

ACCOUNT = "123456789012"
HOST = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"
# What moto's AWS gives to everybody.
TOKEN = Credentials("AWS", f"{ACCOUNT}-auth-token")
SECRET_KEY = "a-secret-key-of-nobody"


class EcrTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.aws.start()
        self.addCleanup(self.aws.stop)
        _, port = self.aws.get_host_and_port()
        home = Path(self.mktemp()).resolve()
        home.mkdir(parents=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = environment | {
            "HOME": str(home),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.home = home
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.use(self.environment)

    def use(self, environment: dict[str, str]) -> None:
        """botocore reads the process's own environment."""
        self.patch(os, "environ", environment)

    def ecr(self, *, helper: str = "") -> EcrCredentials:
        """`helper` is the directory of AWS's, "" for none."""
        runner = HelperRunner(reactor, self.workers, self.environment | {"PATH": helper})
        return EcrCredentials(fetch_token, runner, self.workers, reactor)

    async def test_botocore_gets_a_token_from_the_environments_keys(self) -> None:
        self.assertEqual(await self.ecr().credentials(HOST), TOKEN)

    async def test_from_a_profile_too(self) -> None:
        environment = {n: v for n, v in self.environment.items() if n not in ("AWS_ACCESS_KEY_ID",)}
        environment.pop("AWS_SECRET_ACCESS_KEY")
        directory = self.home / ".aws"
        directory.mkdir()
        (directory / "credentials").write_text(f"[work]\naws_access_key_id=A\naws_secret_access_key={SECRET_KEY}\n")
        self.use(environment)
        self.assertIsNone(await self.ecr().credentials(HOST))
        self.use(environment | {"AWS_PROFILE": "work"})
        self.assertEqual(await self.ecr().credentials(HOST), TOKEN)

    async def test_no_keys_or_no_aws_is_a_failure_that_tells_no_secret(self) -> None:
        without = {n: v for n, v in self.environment.items() if not n.startswith("AWS_A") and "SECRET" not in n}
        for environment, words in (
            (without, "credentials"),
            (self.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect"),
            (self.environment | {"AWS_PROFILE": "absent"}, "absent"),
        ):
            self.use(environment)
            try:
                await self.workers.run(fetch_token, EcrHost("eu-west-1", account=ACCOUNT))
                self.fail("it did not fail")
            except TokenFailed as error:
                self.assertIn(words, str(error))
                self.assertNotIn(SECRET_KEY, f"{error!r} {error.__context__!r}")

    async def test_the_real_helper_gets_one_and_leaves_no_token_on_the_disk(self) -> None:
        name = os.environ.get("K3DREG_TEST_ECR_HELPER") or shutil.which("docker-credential-ecr-login")
        if not name:
            rig.unavailable("AWS's docker-credential-ecr-login is not on the PATH:")
            return
        self.assertEqual(await self.ecr(helper=str(Path(name).parent)).credentials(HOST), TOKEN)
        for path in self.home.rglob("*"):
            if path.is_file():
                self.assertNotIn(TOKEN.password.encode(), path.read_bytes())

    async def test_botocore_is_asked_for_what_the_real_helper_does_not_have(self) -> None:
        """The helper's AWS is out of reach, so it says what it says of hosts that it does not know."""
        name = os.environ.get("K3DREG_TEST_ECR_HELPER") or shutil.which("docker-credential-ecr-login")
        if not name:
            rig.unavailable("AWS's docker-credential-ecr-login is not on the PATH:")
            return
        nowhere = {"PATH": str(Path(name).parent), "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
        runner = HelperRunner(reactor, self.workers, self.environment | nowhere)
        self.assertTrue(await runner.is_installed("ecr-login"))
        self.assertIsNone(await runner.get("ecr-login", HOST))
        for host in (HOST, f"{ACCOUNT}.dkr-ecr.eu-west-1.on.aws", f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu"):
            self.assertEqual(await EcrCredentials(fetch_token, runner, self.workers, reactor).credentials(host), TOKEN)

    async def test_engines_show_the_token_to_a_registry_that_checks_it(self) -> None:
        """The registry is this machine's, so its name is not one of AWS's: the chain is asked for one that is."""
        upstream = FakeUpstream(auth="basic", user=TOKEN.username, password=TOKEN.password)
        upstream.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(upstream.stop()))
        put_image(upstream)
        # Both stores; other processes of the tests use the other engines.
        engines = rig.spares()
        if not engines:
            rig.unavailable("K3DREG_TEST_SPARES is not set:")
        found = await CredentialChain([self.ecr()]).credentials(HOST)
        assert found is not None
        chain = CredentialChain([Fixed(found)])
        for engine in engines:
            docker = Docker(engine.socket)
            repository = f"{upstream.host}/k3dreg-ecr-{uuid.uuid4().hex[:8]}"
            query = {"fromImage": repository, "tag": "1"}
            auth = await chain.registry_auth(upstream.host)
            for shown in ("", auth):
                try:
                    await deferToThread(docker.progress, "POST", "/images/create", query=query, registry_auth=shown)
                    self.assertTrue(shown, f"{engine.name} pulled without credentials")
                except DockerError as error:
                    self.assertFalse(shown, f"{engine.name}: {error}")
            self.assertIsNotNone(await deferToThread(docker.inspect, f"{repository}:1"))
            await deferToThread(docker.remove, f"{repository}:1")


class Fixed:
    name = "fixed"

    def __init__(self, found: Credentials) -> None:
        self._found = found

    async def credentials(self, registry: str) -> Credentials | None:
        return self._found

    def refused(self, registry: str) -> None:
        pass


def put_image(upstream: FakeUpstream) -> None:
    """An image with the tag `1` in every repository."""
    maker = LayerMaker({})
    maker.file("x", os.urandom(1000))
    layer = maker.layer()
    config = to_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }
    )
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": {"mediaType": media_types.OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [layer.descriptor],
    }
    for data in (config, layer.data):
        upstream.add_blob(data)
    upstream.add_manifest(media_types.OCI_MANIFEST, to_json(manifest), "1")
