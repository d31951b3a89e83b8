# SPDX-License-Identifier: Apache-2.0
"""Packaging: the C++ and board data of `hls/` and `overlay/` travel inside the package.

Everything declarative stands in `pyproject.toml`; only the mapping of folders that lie outside
`host/` needs code.
"""

from setuptools import find_packages, setup

setup(
    package_dir={
        "": "host",
        "pynq_bbs.hls": "hls",
        "pynq_bbs.overlay": "overlay",
    },
    packages=[*find_packages("host"), "pynq_bbs.hls", "pynq_bbs.overlay"],
    package_data={
        "pynq_bbs": ["py.typed"],
        "pynq_bbs.bench": ["*.cpp"],
        "pynq_bbs.cpu": ["*.cpp", "*.hpp"],
        "pynq_bbs.hls": ["*.hpp", "*.cpp", "*.json", "vitis/*"],
        "pynq_bbs.overlay": ["*.json", "builds/*.json", "*.tcl"],
    },
)
