"""What watches the daemon: metrics, and what the status page shows.  Nothing here changes what k3dreg does."""
