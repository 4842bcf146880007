"""The twisted.web resource tree: parse the request, call a use case, write the answer."""
