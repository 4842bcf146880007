"""Images whose tags have moved in their registries (`--refresh`).

A tag means what Docker has.  For tags that a rule fits, k3dreg asks their registry which digest it has, and lets Docker
pull when that is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.docker.image import EngineImage
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.formats.text import age
from k3dreg.oci.errors import K3dregError, NotYet, RateLimited, UpstreamFailed
from k3dreg.oci.reference import Reference
from k3dreg.registry.prefetch import matches
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions, not_known
from k3dreg.registry.tag_records import TagRecord
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.timeout import within

log = make_logger()

# Seconds that a client waits for a registry's answer.  A HEAD with a token takes less than one.  A registry that does
# not answer must not make a pod wait, as Docker has an image for it.
WAIT = 5.0
# Seconds until a registry is asked again after it did not answer, or until Docker tries a pull again that failed.
AGAIN_AFTER = 300.0
# The same after "too many requests".  Registries count over hours (Docker Hub: six).
AGAIN_AFTER_RATE_LIMIT = 900.0

# A tag, with the credentials that the client sent.
_Asked = tuple[Reference, BasicAuth | None]


def _nothing(text: str) -> None:
    pass


class Refresh:
    """Lets Docker pull tags again that have moved.  The owner calls `shutdown` at the end.

    A tag is asked about at most once in the time of its rule, whichever clients want it.  Whatever fails, the client
    gets the image that Docker has: a tag that has moved must not keep a pod from starting.
    """

    def __init__(
        self,
        questions: TagQuestions,
        resolver: Resolver,
        credentials: PullCredentials,
        clock: IReactorTime,
        tell: Callable[[str], object] = _nothing,
    ) -> None:
        """`tell` is called with each thing that is found out, beside the log."""
        self._questions = questions
        self._resolver = resolver
        self._credentials = credentials
        self._clock = clock
        self._tell = tell
        self._rules: Sequence[RefreshRule] = ()
        self._asking: SingleFlight[_Asked, TagRecord | None] = SingleFlight()
        self._pulling: SingleFlight[_Asked, EngineImage | None] = SingleFlight()
        self._failed: NegativeCache[_Asked] = NegativeCache(clock)
        # By registry, for errors that concern all its tags.
        self._silent: NegativeCache[tuple[str | None, BasicAuth | None]] = NegativeCache(clock)

    def change(self, rules: Sequence[RefreshRule]) -> None:
        """Use these rules from the next request on.  Of several that fit a name, the first counts."""
        self._rules = rules

    def shutdown(self) -> Deferred[None]:
        """Cancel all questions and pulls; fire when they have ended."""
        return self._asking.shutdown().addCallback(lambda _: self._pulling.shutdown())

    async def current(
        self, image: EngineImage, reference: Reference, authorization: BasicAuth | None, trace: Trace
    ) -> EngineImage:
        """Return the image that the tag has in its registry, after a pull by Docker; else `image`, which Docker has.

        `authorization` is the credentials that the client sent.  Does not raise because of a registry or a failed pull.
        Cancelling leaves a question and a pull running for the next request.
        """
        rule = self._rule_for(reference)
        if rule is None or self._is_paused(reference, authorization):
            return image
        record = await self._answer(image, reference, authorization, rule, trace)
        if record is None or not record.is_newer_than(image, reference):
            return image
        started = self._clock.seconds()
        # This waits as for any pull: a client that cannot wait so long is told to ask again.
        newer = await self._pulling.join(
            (reference, authorization), lambda: self._pull(image, reference, authorization, record)
        )
        trace.step(f"pull {self._clock.seconds() - started:.1f}s")
        return image if newer is None else newer

    def _rule_for(self, reference: Reference) -> RefreshRule | None:
        if not self._rules or self._questions.refuses(reference) is not None:
            return None
        name = str(reference)
        return next((rule for rule in self._rules if matches(name, (rule.pattern,))), None)

    def _is_paused(self, reference: Reference, authorization: BasicAuth | None) -> bool:
        try:
            self._silent.check((reference.repository.registry, authorization))
            self._failed.check((reference, authorization))
        except K3dregError:
            return True
        return False

    async def _answer(
        self,
        image: EngineImage,
        reference: Reference,
        authorization: BasicAuth | None,
        rule: RefreshRule,
        trace: Trace,
    ) -> TagRecord | None:
        """Return what is known of the tag, after a question if that is older than the rule allows.

        None if the registry does not answer, or not soon.
        """
        record, started = self._questions.last_answer(reference), self._clock.seconds()
        if record is not None and not record.is_older_than(rule.age, started):
            self._tell_answer(record, image, reference)
            return record

        async def question() -> TagRecord | None:
            return await self._asking.join(
                (reference, authorization), lambda: self._ask(image, reference, authorization)
            )

        try:
            record = await within(WAIT, self._clock, question(), after=0)
        except NotYet:
            self._say(f"its registry has not answered for {WAIT:.0f} s", reference)
            return None
        if record is None or record.is_of(image):  # otherwise the registry was not asked
            trace.step(f"registry asked {self._clock.seconds() - started:.1f}s")
        return record

    async def _ask(self, image: EngineImage, reference: Reference, authorization: BasicAuth | None) -> TagRecord | None:
        """Ask the registry.  After an error, log it, leave the registry alone for a time, and return None.

        The request that waits may be gone when the answer comes.
        """
        try:
            record = await self._questions.ask(image, reference, authorization)
        except K3dregError as error:
            if isinstance(error, RateLimited | UpstreamFailed):
                self._silent.remember((reference.repository.registry, authorization), error, _pause_after(error))
            else:
                self._failed.remember((reference, authorization), error, _pause_after(error))
            self._say(f"its registry does not say whether it has moved: {error}", reference)
            return None
        self._tell_answer(record, image, reference)
        if not record.is_of(image):
            log.info("{reference} is not refreshed: {why}", reference=reference, why=not_known(reference))
        return record

    async def _pull(
        self, image: EngineImage, reference: Reference, authorization: BasicAuth | None, record: TagRecord
    ) -> EngineImage | None:
        """Let Docker pull the tag.  After an error, log it, try no pull for a time, and return None."""
        try:
            auth = await self._credentials.registry_auth(reference, authorization)
            return await self._resolver.pull_newer(image, reference, auth, Trace())
        except K3dregError as error:
            self._failed.remember((reference, authorization), error, _pause_after(error))
            self._say(f"Docker could not pull {record.digest}, which its registry has now: {error}", reference)
            return None

    def _say(self, why: str, reference: Reference) -> None:
        """Log and tell why the client gets Docker's image, and how old the registry's last answer is."""
        record = self._questions.last_answer(reference)
        when = (
            "it has not answered yet"
            if record is None or record.image is None
            else f"it last answered {self._ago(record)}"
        )
        self._tell(f"Docker's image is served: {why} ({when})")
        log.warn(
            "{reference} is served as Docker has it: {why} ({when})",
            reference=reference,
            why=why,
            when=when,
        )

    def _tell_answer(self, record: TagRecord, image: EngineImage, reference: Reference) -> None:
        registry = reference.repository.registry
        if not record.is_of(image):
            self._tell(f"it is not refreshed: {not_known(reference)}")
        elif record.is_newer_than(image, reference):
            self._tell(f"{registry} has another image for it, {record.digest}, by its answer of {self._ago(record)}")
        else:
            self._tell(f"{registry} has the same image for it, by its answer of {self._ago(record)}")

    def _ago(self, record: TagRecord) -> str:
        return f"{age(self._clock.seconds() - record.asked)} ago"


def _pause_after(error: K3dregError) -> float:
    return AGAIN_AFTER_RATE_LIMIT if isinstance(error, RateLimited) else AGAIN_AFTER
