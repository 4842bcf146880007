"""The commands beside the daemon: doctor, why, warm, config, ls, gc."""
