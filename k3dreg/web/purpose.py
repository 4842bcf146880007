"""What a client asks a manifest for, as far as its request tells."""

from __future__ import annotations

from k3dreg.oci import media_types

_TYPES = media_types.INDEXES | media_types.MANIFESTS


def may_decide_a_push(method: str, accept: str | None) -> bool:
    """Whether the answer may make the client leave out a push: it asks if a manifest is there, and may be a push tool.

    Only a client that is known to pull gives False.  That is one that sends `GET`, or one whose `HEAD` lists several
    types of manifests and then `*/*`, as containerd's resolver does (`core/remotes/docker/resolver.go`): nodes, and
    Docker with the containerd image store.  containerd's pusher names the one type that it would send, and `*/*`
    (`pusher.go`, next to it).  go-containerregistry (`pkg/v1/remote/fetcher.go`), regclient (`scheme/reg/manifest.go`)
    and oras (`registry/remote/manifest.go`) send the same `HEAD` before a push as before a pull, without `*/*`.
    """
    if method != "HEAD":
        return False
    types = {each.partition(";")[0].strip().lower() for each in (accept or "").split(",")}
    return "*/*" not in types or len(types & _TYPES) < 2
