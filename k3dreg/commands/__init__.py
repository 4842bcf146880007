"""The commands for people: doctor, why, warm, config, ls, gc."""
