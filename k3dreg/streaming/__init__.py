"""Streams, producers, worker threads, single flight.  Back-pressure and cancellation live here, nowhere else."""
