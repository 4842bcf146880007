"""Why a client requests a manifest, as far as the request shows."""

from __future__ import annotations

from k3dreg.oci import media_types

_TYPES = media_types.INDEXES | media_types.MANIFESTS


def may_decide_a_push(method: str, accept: str | None) -> bool:
    """Return whether the client may be a push tool, which leaves out the push if the answer is 200.

    False means that the client is known to pull.  It sends `GET`, or its `HEAD` lists several types of manifests and
    `*/*`, as containerd's resolver does (`core/remotes/docker/resolver.go`): nodes, and Docker with the containerd
    image store.  containerd's pusher lists the one type that it would send, and `*/*` (`pusher.go`, next to it).
    go-containerregistry (`pkg/v1/remote/fetcher.go`), regclient (`scheme/reg/manifest.go`) and oras
    (`registry/remote/manifest.go`) send the same `HEAD` before a push as before a pull, without `*/*`.
    """
    if method != "HEAD":
        return False
    types = {each.partition(";")[0].strip().lower() for each in (accept or "").split(",")}
    return "*/*" not in types or len(types & _TYPES) < 2
