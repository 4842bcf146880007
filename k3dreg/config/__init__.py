"""Read settings from command line, environment and settings file, and turn them into one checked, frozen `Config`."""
