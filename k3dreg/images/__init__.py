"""Sources of an image's bytes: content store, layer store, export.  And the repair of images that lost blobs."""
