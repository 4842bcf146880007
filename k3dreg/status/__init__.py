"""Health, metrics, and the status page.  This package only observes the daemon."""
