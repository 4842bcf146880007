"""The registries of AWS: which hosts they are, and how long a token is kept."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from k3dreg.credentials.ecr import EcrCredentials
from k3dreg.credentials.ecr_hosts import EcrHost
from k3dreg.credentials.ecr_tokens import EcrToken, TokenFailed, _token
from k3dreg.credentials.helpers import HelperFailed
from k3dreg.formats.basic_auth import Credentials
from tests.fakes.workers import InlineWorkers, ManualWorkers
from tests.unit.credentials.test_chain import SECRET, FakeHelpers, LoggingTestCase

ACCOUNT = "123456789012"
HOST = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("registry", "host"),
    [
        (HOST, EcrHost("eu-west-1", account=ACCOUNT)),
        (HOST.upper(), EcrHost("eu-west-1", account=ACCOUNT)),
        (f"{HOST}:443", EcrHost("eu-west-1", account=ACCOUNT)),
        (f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn", EcrHost("cn-north-1", account=ACCOUNT)),
        (f"{ACCOUNT}.dkr.ecr-fips.us-gov-west-1.amazonaws.com", EcrHost("us-gov-west-1", False, ACCOUNT, fips=True)),
        (f"{ACCOUNT}.dkr-ecr.us-east-1.on.aws", EcrHost("us-east-1", False, ACCOUNT, dual_stack=True)),
        (f"{ACCOUNT}.dkr-ecr-fips.us-east-1.on.aws", EcrHost("us-east-1", False, ACCOUNT, True, True)),
        (
            f"{ACCOUNT}.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            EcrHost("cn-north-1", False, ACCOUNT, dual_stack=True),
        ),
        (f"{ACCOUNT}.dkr.ecr.eusc-de-east-1.amazonaws.eu", EcrHost("eusc-de-east-1", account=ACCOUNT)),
        (
            f"{ACCOUNT}.dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu",
            EcrHost("eusc-de-east-1", False, ACCOUNT, dual_stack=True),
        ),
        (f"{ACCOUNT}.dkr.ecr.us-iso-east-1.c2s.ic.gov", EcrHost("us-iso-east-1", account=ACCOUNT)),
        (f"{ACCOUNT}.dkr.ecr.us-isob-east-1.sc2s.sgov.gov", EcrHost("us-isob-east-1", account=ACCOUNT)),
        (f"{ACCOUNT}.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk", EcrHost("eu-isoe-west-1", account=ACCOUNT)),
        (f"{ACCOUNT}.dkr.ecr.us-isof-south-1.csp.hci.ic.gov", EcrHost("us-isof-south-1", account=ACCOUNT)),
        ("public.ecr.aws", EcrHost("us-east-1", public=True)),
        ("ecr-public.aws.com", EcrHost("us-east-1", public=True, dual_stack=True)),
    ],
)
def test_hosts_of_aws_are_known(registry: str, host: EcrHost) -> None:
    assert EcrHost.parse(registry) == host


@pytest.mark.parametrize(
    "registry",
    [
        "docker.io",
        "amazonaws.com",
        "ecr.eu-west-1.amazonaws.com",
        f"x{HOST}",
        f"{HOST}.evil.example",
        f"{HOST}\n",
        "12345.dkr.ecr.eu-west-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonawsXcom",
        f"{ACCOUNT}.dkr.ecr.evil.example.eu-west-1.amazonaws.com",
        f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com.evil",
        "public.ecr.aws.evil.example",
        "evil.public.ecr.aws",
        "aws.com",
        "evil.ecr-public.aws.com",
        f"{ACCOUNT}.dkr.ecr.us-iso-east-1.ic.gov",
    ],
)
def test_no_other_host_is_taken_for_one_of_aws(registry: str) -> None:
    assert EcrHost.parse(registry) is None


@pytest.mark.parametrize("answer", [{}, {"authorizationData": []}, {"authorizationData": {"authorizationToken": "x"}}])
def test_an_answer_without_a_token_is_a_failure(answer: dict[str, object]) -> None:
    with pytest.raises(TokenFailed):
        _token(answer)


class EcrTests(LoggingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.clock.advance(1_000_000_000)
        self.fetched: list[EcrHost] = []
        self.trouble: TokenFailed | None = None
        self.lifetime = 12 * 3600.0
        self.helpers = FakeHelpers()
        self.workers = InlineWorkers(self.clock)
        self.make()

    def make(self) -> None:
        self.ecr = EcrCredentials(self.fetch, self.helpers, self.workers, self.clock)  # type: ignore[arg-type]

    def fetch(self, host: EcrHost) -> EcrToken:
        self.fetched.append(host)
        if self.trouble is not None:
            raise self.trouble
        number = len(self.fetched)
        return EcrToken(Credentials("AWS", f"{SECRET}{number}"), self.clock.seconds() + self.lifetime)

    def find(self, registry: str = HOST) -> Credentials | None:
        return self.successResultOf(Deferred.fromCoroutine(self.ecr.credentials(registry)))

    def test_other_hosts_never_reach_aws(self) -> None:
        self.assertIsNone(self.find("docker.io"))
        self.assertEqual(self.fetched, [])

    def test_a_token_is_kept_until_shortly_before_it_expires(self) -> None:
        first = self.find()
        self.assertEqual(first, Credentials("AWS", f"{SECRET}1"))
        self.clock.advance(self.lifetime - 901)
        self.assertEqual(self.find(), first)
        self.assertEqual(len(self.fetched), 1)
        self.clock.advance(2)
        self.assertEqual(self.find(), Credentials("AWS", f"{SECRET}2"))
        self.assertNotIn(SECRET, "".join(self.lines))

    def test_a_token_that_the_registry_does_not_take_is_not_shown_again(self) -> None:
        self.find()
        self.ecr.refused(HOST.replace("eu-west-1", "us-east-1"))
        self.ecr.refused("docker.io")
        self.assertEqual(self.find(), Credentials("AWS", f"{SECRET}1"))
        self.ecr.refused(HOST)
        self.assertEqual(self.find(), Credentials("AWS", f"{SECRET}2"))

    def test_that_no_token_can_be_had_is_remembered_all_the_same(self) -> None:
        self.trouble = TokenFailed("Unable to locate credentials")
        self.find()
        self.ecr.refused(HOST)
        self.find()
        self.assertEqual(len(self.fetched), 1)

    def test_a_token_that_has_expired_when_it_comes_serves_once(self) -> None:
        self.lifetime = -1
        self.assertIsNotNone(self.find())
        self.find()
        self.assertEqual(len(self.fetched), 2)

    def test_each_endpoint_has_a_token_of_its_own_for_all_accounts(self) -> None:
        hosts = [
            HOST,
            HOST.replace("eu-west-1", "us-east-1"),
            HOST.replace("dkr.ecr", "dkr.ecr-fips"),
            "public.ecr.aws",
        ]
        self.assertEqual(len({str(self.find(host).password) for host in hosts}), 4)  # type: ignore[union-attr]
        self.assertEqual(self.find(HOST.replace(ACCOUNT, "2" * 12)), self.find())
        self.assertEqual(len(self.fetched), 4)
        self.ecr.refused(HOST.replace(ACCOUNT, "2" * 12))
        self.assertEqual(self.find(), Credentials("AWS", f"{SECRET}5"))

    def test_no_more_than_a_few_endpoints_are_asked_at_once(self) -> None:
        self.workers = workers = ManualWorkers(self.clock)
        self.make()
        regions = [f"xx-made-{number}" for number in range(30)]
        asked = [Deferred.fromCoroutine(self.ecr.credentials(HOST.replace("eu-west-1", each))) for each in regions]
        self.assertEqual(len(workers.waiting), 16)
        self.assertEqual([self.successResultOf(each) for each in asked[16:]], [None] * 14)
        # One that is being asked already has room for more who wait.
        again = Deferred.fromCoroutine(self.ecr.credentials(HOST.replace("eu-west-1", regions[0])))
        while workers.waiting:
            workers.work()
        self.assertIsNotNone(self.successResultOf(again))

    def test_many_who_ask_at_once_cost_one_call(self) -> None:
        self.workers = workers = ManualWorkers(self.clock)
        self.make()
        asked = [Deferred.fromCoroutine(self.ecr.credentials(HOST)) for _ in range(5)]
        self.assertEqual(len(workers.waiting), 1)
        asked[0].cancel()
        self.failureResultOf(asked[0])
        workers.work()
        self.assertEqual({self.successResultOf(one) for one in asked[1:]}, {Credentials("AWS", f"{SECRET}1")})

    def test_the_api_is_asked_for_what_an_installed_helper_does_not_have(self) -> None:
        for answer in (None, HelperFailed("docker-credential-ecr-login failed: it knows no such host")):
            self.helpers.answers["ecr-login"] = answer
            self.make()
            self.fetched.clear()
            self.assertEqual(self.find(f"{ACCOUNT}.dkr-ecr.eu-west-1.on.aws"), Credentials("AWS", f"{SECRET}1"))
        self.assertEqual(len(self.helpers.asked), 2)
        self.assertFalse([line for line in self.lines if "no credentials" in line])

    def test_when_neither_has_a_token_the_log_says_why_each_has_not(self) -> None:
        self.helpers.answers["ecr-login"] = HelperFailed("docker-credential-ecr-login failed: it knows no such host")
        self.trouble = TokenFailed("Unable to locate credentials")
        self.assertIsNone(self.find())
        self.assertIn("it knows no such host", self.lines[-1])
        self.assertIn("Unable to locate credentials", self.lines[-1])

    def test_a_failure_is_logged_and_means_no_credentials_for_half_a_minute(self) -> None:
        self.trouble = TokenFailed("Unable to locate credentials")
        self.assertIsNone(self.find())
        self.assertIsNone(self.find())
        self.assertEqual(len(self.fetched), 1)
        self.assertEqual(len(self.lines), 1)
        self.assertIn(f"no credentials for {HOST} from AWS", self.lines[0])
        self.assertIn("Unable to locate credentials", self.lines[0])
        self.trouble = None
        self.clock.advance(31)
        self.assertIsNotNone(self.find())

    def test_the_helper_is_used_where_it_is_installed(self) -> None:
        self.helpers.answers["ecr-login"] = Credentials("AWS", SECRET)
        self.assertEqual(self.find(), Credentials("AWS", SECRET))
        self.assertEqual(self.helpers.asked, [("ecr-login", HOST)])
        self.assertEqual(self.fetched, [])
        self.clock.advance(3599)
        self.find()
        self.assertEqual(len(self.helpers.asked), 1)
        self.clock.advance(2)
        self.find()
        self.assertEqual(len(self.helpers.asked), 2)

    def test_a_helper_that_fails_or_has_nothing_is_a_failure_like_any(self) -> None:
        self.trouble = TokenFailed("Unable to locate credentials")
        for answer in (HelperFailed("docker-credential-ecr-login failed: no role"), None):
            self.helpers.answers["ecr-login"] = answer
            self.assertIsNone(self.find())
            self.clock.advance(31)
        self.assertIn("no role", self.lines[0])
        self.assertIn("has no token", self.lines[1])

    def test_hosts_that_nobody_uses_do_not_pile_up(self) -> None:
        for number in range(300):
            self.find(HOST.replace("eu-west-1", f"xx-made-{number}"))
        self.assertEqual(len(self.fetched), 300)
        self.assertLessEqual(len(self.ecr._held), 200)
