"""k3dreg's own content on disk: blobs, what was pushed, eviction and collection."""
