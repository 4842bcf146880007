"""Makes `twistd k3dreg` known."""

from twisted.application.service import ServiceMaker

k3dreg = ServiceMaker(
    "k3dreg", "k3dreg.daemon.service", "An OCI registry whose content is the local Docker engine", "k3dreg"
)
