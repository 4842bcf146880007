"""The error of attaching a node."""

from __future__ import annotations


class CannotAttach(Exception):
    """A node cannot be attached or detached.  The text says why, and `advice` what the user can do, or "".

    It is no `K3dregError`, because no client gets it.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


class NoMirrorFiles(CannotAttach):
    """The node's containerd reads no mirrors from files, so the node cannot have been attached."""
