"""Packaging of k3dreg.  The Twisted plugin goes into the wheel as a file of `twisted.plugins`, with no `__init__`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "k3dreg" / "__init__.py").read_text())
assert VERSION

setup(
    name="k3dreg",
    version=VERSION[1],
    description="An OCI registry whose content is the local Docker engine, for Kubernetes clusters in containers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["k3dreg", "k3dreg.*"]), "twisted.plugins"],
    package_data={"k3dreg": ["py.typed", "status/assets/*"]},
    install_requires=[
        "attrs>=23.1",
        "bcrypt>=4.0",  # no dependencies of its own; the first that lets other threads run meanwhile
        "botocore>=1.31",  # AWS's chain of credentials for ECR; the first with AWS_ENDPOINT_URL
        "cachetools>=5.3",  # what was used last stays, for a time by Twisted's clock
        "prometheus-client>=0.20",  # the text format, escaped and typed as Prometheus reads it
        "service-identity>=23.1",
        "treq>=24.9",
        "twisted[tls]>=24.11",
        "txaio>=23.1",
        "zope.interface>=6.0",
    ],
    extras_require={"link": ["grpcio>=1.60"]},  # asks containerd, for --link-layers
    entry_points={"console_scripts": ["k3dreg = k3dreg.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Software Development :: Build Tools",
    ],
)
