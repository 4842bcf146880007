"""Where an image's bytes come from: content store, layer store, export; and the repair of images that lost blobs."""
