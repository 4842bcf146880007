"""The use cases: pull, push, tags, own names, prefetch, refresh, linking in advance.  None of them uses HTTP."""
