"""The error of attaching a node."""

from __future__ import annotations

from k3dreg.oci.errors import ExplainedError


class CannotAttach(ExplainedError):
    """A node cannot be attached or detached.  It is no `K3dregError`, because no client gets it."""


class NoMirrorFiles(CannotAttach):
    """The node's containerd reads no mirrors from files, so the node cannot have been attached."""
