"""`k3dreg doctor`: checks what k3dreg needs, and says what to do about problems."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from k3dreg.commands.checks import OK, Check
from k3dreg.commands.checks_clusters import cluster_checks
from k3dreg.commands.checks_engine import engine_checks
from k3dreg.commands.checks_linking import linking_checks
from k3dreg.commands.checks_machine import credential_helpers, socket_file, state_directory
from k3dreg.commands.checks_ports import ListeningPort, try_endpoint
from k3dreg.commands.checks_reachability import reach_checks
from k3dreg.config.settings import Config
from k3dreg.docker.client import EngineClient
from k3dreg.streaming.workers import Workers


async def examine(
    config: Config, engine: EngineClient, workers: Workers, reactor: Any, environment: Mapping[str, str]
) -> list[Check]:
    """Run all checks and return them.  They change nothing, and problems raise nothing."""
    checks = [await workers.run(socket_file, config.docker)]
    of_engine = await engine_checks(config, engine, workers, reactor.seconds())
    checks += of_engine
    checks.append(await workers.run(state_directory, config.state_dir, config.cache_size))
    listening: list[ListeningPort] = []
    try:
        for endpoint in config.listen:
            listening.append(await try_endpoint(endpoint, reactor))
        checks += [port.check for port in listening]
        if of_engine[0].verdict == OK:
            ports = [port.port for port in listening if port.port]
            answers = any(port.answers for port in listening)
            checks += await reach_checks(engine, config.aliases, socket.gethostname(), ports, answers=answers)
            checks += await cluster_checks(engine)
            if config.link_layers:
                checks += await linking_checks(engine, config.docker.socket, workers, reactor)
    finally:
        for port in listening:
            if port.close is not None:
                await port.close()
    checks.append(await workers.run(credential_helpers, environment))
    return checks
