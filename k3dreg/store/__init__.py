"""k3dreg's own content on disk: blobs, the list of what was pushed, eviction and garbage collection."""
