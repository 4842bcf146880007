"""Parsers without I/O and without Twisted: bytes go in, events and values come out."""
