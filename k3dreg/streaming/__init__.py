"""Streams, producers, worker threads and single flight.  Only this package implements back-pressure and cancelling."""
