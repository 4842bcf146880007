"""Settings: command line, environment and settings file, checked and turned into one frozen `Config`."""
