"""Parsers without I/O: bytes go in, events and values come out.  No Twisted."""
