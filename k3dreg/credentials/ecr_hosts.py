"""The registry hosts of AWS: which account's, in which region, by which kind of endpoint.

The grammar is AWS's own list of registry URIs (ECR User Guide, "Private registry"; AWS General Reference, "Amazon ECR
endpoints and quotas"):

    ACCOUNT.dkr.ecr.REGION.amazonaws.com            ACCOUNT.dkr.ecr.REGION.amazonaws.com.cn
    ACCOUNT.dkr.ecr-fips.REGION.amazonaws.com       ACCOUNT.dkr-ecr.REGION.on.aws            (dual-stack)
    ACCOUNT.dkr-ecr-fips.REGION.on.aws              ACCOUNT.dkr-ecr.REGION.on.amazonwebservices.com.cn
    public.ecr.aws
"""

from __future__ import annotations

import re

from attrs import frozen

_PUBLIC = "public.ecr.aws"
_PRIVATE = re.compile(
    r"(?P<account>[0-9]{12})\."
    r"(?:dkr\.ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9]+(?:-[a-z0-9]+)+)\.(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu)"
    r"|dkr-ecr(?P<dual_fips>-fips)?\.(?P<dual_region>[a-z0-9]+(?:-[a-z0-9]+)+)\.on\."
    r"(?:aws|amazonwebservices\.com\.cn|amazonwebservices\.eu))"
)
# AWS offers the API of its public registry in one region only (ECR Public API Reference, "Welcome").
_PUBLIC_REGION = "us-east-1"


@frozen
class EcrHost:
    """A registry of AWS.  Hosts that are equal as values take the same token."""

    region: str
    public: bool = False
    account: str = ""
    fips: bool = False
    dual_stack: bool = False

    @classmethod
    def parse(cls, registry: str) -> EcrHost | None:
        """The host, or None if it is not one of AWS's.  A port is left aside: the token is the same."""
        host = registry.lower().partition(":")[0]
        if host == _PUBLIC:
            return cls(_PUBLIC_REGION, public=True)
        match = _PRIVATE.fullmatch(host)
        if match is None:
            return None
        return cls(
            match["region"] or match["dual_region"],
            account=match["account"],
            fips=bool(match["fips"] or match["dual_fips"]),
            dual_stack=match["dual_region"] is not None,
        )
