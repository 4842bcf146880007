"""The twisted.web resource tree: it parses requests, calls the use cases and writes the responses."""
