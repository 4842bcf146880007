"""Health, metrics, and the status page.  Nothing here changes what k3dreg does."""
