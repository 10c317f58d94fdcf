"""Packaging of Chutes AutoPilot; tool settings live in pyproject.toml."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.findall(r'^__version__ = "([^"]+)"', (HERE / "chutes_autopilot/__init__.py").read_text(), re.M)[0]
# Not ./build: pip builds in the checkout, and what an older build left there would be installed again.
BUILD = TemporaryDirectory(prefix="chutes-autopilot-build-")

REDIS = ["txredisapi>=1.6,<2"]
ATTESTATION = ["dcap-qvl>=0.7,<0.8"]
WEBSOCKET = ["Twisted[websocket]>=26.10,<27"]
TRACING = ["opentelemetry-sdk>=1.45,<2", "opentelemetry-exporter-otlp-proto-http>=1.45,<2"]

TEST = [
    "pytest>=8.3,<10",
    "pytest-twisted>=1.14,<2",
    "hypothesis>=6.120,<7",
    "openai>=2,<4",
    "trustme>=1.2,<2",
    "PyYAML>=6,<7",
    "kubernetes-validate>=1.33,<2",
    "playwright>=1.50,<2",
    "setuptools>=77",
    *REDIS,
    *ATTESTATION,
    *WEBSOCKET,
    *TRACING,
]

setup(
    name="chutes-autopilot",
    version=VERSION,
    description="OpenAI-compatible gateway for Chutes: live model ranking, streaming, failover before the first byte",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # "twisted.plugins" is a namespace that Twisted extends by path: it must not get an __init__.py of ours.
    packages=[*find_packages(include=["chutes_autopilot", "chutes_autopilot.*"]), "twisted.plugins"],
    package_data={"chutes_autopilot": ["py.typed", "web/explorer/openapi.json", "web/explorer/static/*"]},
    install_requires=[
        "Twisted[tls]>=26.10,<27",
        "treq>=26.7,<27",
        "klein>=24.8,<25",
        "attrs>=25.1,<27",
        "cryptography>=50,<51",
        "msgspec>=0.20,<0.23",
        "prometheus-client>=0.22,<1",
    ],
    extras_require={
        "redis": REDIS,
        "attestation": ATTESTATION,
        "websocket": WEBSOCKET,
        "tracing": TRACING,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.17,<0.18", "mypy>=2.4,<3", "mypy-zope>=1.0.17,<2", "types-PyYAML", "build>=1.2,<2"],
    },
    options={"build": {"build_base": BUILD.name}},
    entry_points={"console_scripts": ["chutes-autopilot = chutes_autopilot.cli.main:main"]},
    classifiers=[
        "Framework :: Twisted",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
