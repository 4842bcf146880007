"""Parse the names of AWS's registry hosts: account, region and kind of endpoint.

The grammar is that of AWS's list of registry URIs (ECR User Guide, "Private registry"; AWS General Reference, "Amazon
ECR endpoints and quotas").  The isolated partitions are from kubernetes/cloud-provider-aws, `ecr-credential-provider`.

    ACCOUNT.dkr.ecr.REGION.SUFFIX         ACCOUNT.dkr.ecr-fips.REGION.SUFFIX
    ACCOUNT.dkr-ecr.REGION.on.SUFFIX      ACCOUNT.dkr-ecr-fips.REGION.on.SUFFIX      (dual-stack)
    public.ecr.aws                        ecr-public.aws.com                         (dual-stack)
"""

from __future__ import annotations

import re

from attrs import evolve, frozen

# The hosts of the public registry, and whether they are dual-stack.
_PUBLIC = {"public.ecr.aws": False, "ecr-public.aws.com": True}
_SUFFIXES = (
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
)
_DUAL_STACK_SUFFIXES = ("aws", "amazonwebservices.com.cn", "amazonwebservices.eu")


def _any_of(suffixes: tuple[str, ...]) -> str:
    return "|".join(re.escape(suffix) for suffix in suffixes)


_REGION = r"[a-z0-9]+(?:-[a-z0-9]+)+"
_PRIVATE = re.compile(
    r"(?P<account>[0-9]{12})\."
    rf"(?:dkr\.ecr(?P<fips>-fips)?\.(?P<region>{_REGION})\.(?:{_any_of(_SUFFIXES)})"
    rf"|dkr-ecr(?P<dual_fips>-fips)?\.(?P<dual_region>{_REGION})\.on\.(?:{_any_of(_DUAL_STACK_SUFFIXES)}))"
)
# AWS offers the API of its public registry in one region only (ECR Public API Reference, "Welcome").
_PUBLIC_REGION = "us-east-1"


@frozen
class EcrHost:
    """A registry host of AWS.  `account` is "" for the public registry, and for an endpoint of all accounts."""

    region: str
    public: bool = False
    account: str = ""
    fips: bool = False
    dual_stack: bool = False

    @classmethod
    def parse(cls, registry: str) -> EcrHost | None:
        """Return the parsed host; None if it is not AWS's.  A port is ignored, because tokens do not depend on it."""
        host = registry.lower().partition(":")[0]
        if host in _PUBLIC:
            return cls(_PUBLIC_REGION, public=True, dual_stack=_PUBLIC[host])
        match = _PRIVATE.fullmatch(host)
        if match is None:
            return None
        return cls(
            match["region"] or match["dual_region"],
            account=match["account"],
            fips=bool(match["fips"] or match["dual_fips"]),
            dual_stack=match["dual_region"] is not None,
        )

    @property
    def endpoint(self) -> EcrHost:
        """The host without its account.  Hosts of one endpoint accept the same token.

        A token gives access to every registry that its AWS principal may read, in any account (ECR API Reference,
        `GetAuthorizationToken`, `registryIds`).
        """
        return evolve(self, account="")
