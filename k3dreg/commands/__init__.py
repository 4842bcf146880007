"""The commands beside the daemon: doctor, why, warm, refresh, link, attach, detach, config, ls, rm, gc."""
