"""The options of a daemon that finds no engine and listens on any port of this machine."""

from __future__ import annotations

from k3dreg.config.options import Options


def options_without_engine(state_dir: str) -> Options:
    """Return the parsed options.  No container passes Docker's directories, wherever the tests run."""
    options = Options()
    words = ["--state-dir", state_dir, "--docker", "unix:///nonexistent/docker.sock", "--reader", "stopped"]
    options.parseOptions([*words, "--listen", "tcp:0:interface=127.0.0.1"])
    return options
