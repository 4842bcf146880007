"""The messages between k3dreg and the helper that links layers for it: packets of JSON on a UNIX socket.

k3dreg sends a request, and the helper an answer.  Whatever k3dreg sends before the answer cancels the request, and so
does the end of the connection.
"""

from __future__ import annotations

import json
import math

from attrs import asdict, fields, frozen

from k3dreg.clusters.nodes import Node, NodeMount
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.formats.text import one_line
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest

# Linkings of layers at once.  Each uses a processor half of its time, and the disk's journal the rest.
AT_ONCE = 2
# Bytes of a message.  A request has 75 bytes for each layer.  Linux lets a packet have some 200 kB (socket(7),
# wmem_default).
LARGEST = 128 * 1024
CANCEL = b"cancel"
# What is asked for.
LINK, EXAMINE, CLEAN_UP = "link", "examine", "clean up"
# The most that an answer may count, and the most characters of an error that reach the log.
_MOST = 2.0**63
_LONGEST = 500
_WRONG = (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidDigest)


@frozen
class Request:
    """What the helper shall do: `LINK`, `EXAMINE` or `CLEAN_UP`, see the methods of `Linker`.

    Only those members of `info` are sent that a `Linker` uses.
    """

    task: str
    node: Node
    info: EngineInfo | None = None
    repository: str = ""
    chain: tuple[Digest, ...] = ()

    def encode(self) -> bytes:
        """Return the message.  Raises `CannotLink` if it is too large."""
        info = self.info
        message = {
            "task": self.task,
            "node": asdict(self.node),
            "info": info
            and {
                "store": info.store.value,
                "driver": info.driver,
                "root_dir": info.root_dir,
                "containerd_address": info.containerd_address,
                "containerd_namespace": info.containerd_namespace,
                "driver_status": dict(info.driver_status),
                "security_options": info.security_options,
            },
            "repository": self.repository,
            "chain": [str(each) for each in self.chain],
        }
        data = json.dumps(message).encode()
        if len(data) > LARGEST:
            raise CannotLink("the image has too many layers, or the node too many mounts, for the helper container")
        return data

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Return the request of a message.  Raises `CannotLink` for another message."""
        try:
            message = json.loads(data)
            node = message["node"]
            info = message["info"] and EngineInfo(
                id="",
                version="",
                api_version=(0, 0),
                **{
                    **message["info"],
                    "store": ImageStore(message["info"]["store"]),
                    "security_options": tuple(message["info"]["security_options"]),
                },
            )
            return cls(
                message["task"],
                Node(**{**node, "mounts": tuple(NodeMount(**each) for each in node["mounts"])}),
                info,
                message["repository"],
                tuple(Digest.parse(each) for each in message["chain"]),
            )
        except _WRONG as error:
            raise CannotLink("the helper container does not understand k3dreg: is it of the same version?") from error


def encode_answer(outcome: LinkingResult | CannotLink) -> bytes:
    """Return the answer that says what was done, or why it was not."""
    if isinstance(outcome, CannotLink):
        return json.dumps({"error": str(outcome)[:_LONGEST]}).encode()
    return json.dumps({"done": asdict(outcome)}).encode()


def parse_answer(data: bytes) -> LinkingResult:
    """Return what the helper's answer says was done.

    Raises `CannotLink` with the reason why it was not done, or for an answer that is none.
    """
    try:
        message = json.loads(data)
        if "error" in message:
            raise CannotLink(one_line(str(message["error"])[:_LONGEST]))
        done = LinkingResult()
        for each in fields(LinkingResult):
            value = message["done"][each.name]
            # Not NaN, either.
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
                raise ValueError(each.name)
            setattr(done, each.name, float(value) if each.name == "seconds" else math.floor(value))
    except _WRONG as error:
        raise CannotLink("the helper container gave an answer that k3dreg does not understand") from error
    return done
