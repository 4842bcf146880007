"""The error of linking."""

from __future__ import annotations


class CannotLink(Exception):
    """Layers cannot be linked; the text says why in a sentence, for the log.

    It is no `K3dregError`, because no client gets it: the node pulls the layers.
    """
