"""The use cases: pull, push, tags, own names, prefetch.  None of them uses HTTP."""
