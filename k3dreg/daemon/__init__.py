"""Puts the packages together and runs them: service, listeners, reload, and notices to the service manager."""
