"""The use cases: pull, push, tags, own names, prefetch.  They know HTTP not at all."""
