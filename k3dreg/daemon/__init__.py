"""Puts the packages together and runs them: service, listeners, reload, service manager."""
