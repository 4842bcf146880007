"""Get tokens for ECR from AWS's API, through botocore, with AWS's usual chain of credentials.

botocore blocks and takes half a second to load its data.  So this module runs in worker threads, and imports botocore
when the first registry of AWS is asked.
"""

from __future__ import annotations

import base64
import binascii
import threading
from datetime import datetime
from typing import Any

from attrs import field, frozen

from k3dreg.credentials.ecr_hosts import EcrHost
from k3dreg.formats.basic_auth import Credentials

# Seconds.  The API answers within one; a node waits 30 s for k3dreg's answer.
_CONNECT_TIMEOUT = 5
_READ_TIMEOUT = 8
# Attempts, the first included.
_ATTEMPTS = 2

# botocore's sessions cannot create clients in several threads at once.
_lock = threading.Lock()


class TokenFailed(Exception):
    """AWS gave no token.  The text is a clause that says why, and contains no secret."""


@frozen
class EcrToken:
    """Credentials for a registry of AWS.  `expires` is in seconds since the epoch."""

    credentials: Credentials = field(repr=False)
    expires: float


def fetch_token(host: EcrHost) -> EcrToken:
    """Return a new token for the host's registry, from `GetAuthorizationToken`.

    The credentials for AWS come from where AWS's tools look: the environment, `AWS_PROFILE` and `~/.aws`, web identity,
    container and instance roles.  `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_ECR` and `AWS_ENDPOINT_URL_ECR_PUBLIC` have
    their usual effect.  Blocks: call it in a worker thread.  Raises `TokenFailed`.
    """
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise TokenFailed("botocore is not installed") from error
    try:
        with _lock:
            # A new session each time, because a session keeps profiles and roles that may have changed since.
            client = botocore.session.Session().create_client(
                "ecr-public" if host.public else "ecr",
                region_name=host.region,
                config=Config(
                    connect_timeout=_CONNECT_TIMEOUT,
                    read_timeout=_READ_TIMEOUT,
                    retries={"total_max_attempts": _ATTEMPTS},
                    # With None, the user's own AWS settings decide.
                    use_fips_endpoint=host.fips or None,
                    use_dualstack_endpoint=host.dual_stack or None,
                ),
            )
        return _token(client.get_authorization_token())
    except ClientError as error:
        # AWS's code and message contain nothing of the signed request.
        said = error.response.get("Error", {})
        raise TokenFailed(f"{said.get('Code', 'AWS')}: {said.get('Message', 'it refused')}") from None
    except (BotoCoreError, OSError, ValueError) as error:
        raise TokenFailed(" ".join(str(error).split())[:300]) from None


def _token(answer: dict[str, Any]) -> EcrToken:
    """Parse the answer of the private API, whose data is a list, or of the public one.  Raises `TokenFailed`."""
    data = answer.get("authorizationData")
    if isinstance(data, list):
        data = data[0] if data else None
    try:
        assert isinstance(data, dict)
        username, colon, password = base64.b64decode(data["authorizationToken"]).decode("utf-8").partition(":")
        expires = data["expiresAt"]
        assert colon
        assert isinstance(expires, datetime)
    except (AssertionError, KeyError, TypeError, binascii.Error, ValueError):
        raise TokenFailed("AWS answered without a token") from None
    return EcrToken(Credentials(username, password), expires.timestamp())
