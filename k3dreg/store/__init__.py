"""k3dreg's own content on disk."""
