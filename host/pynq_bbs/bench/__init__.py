# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of programs on devices, beside other libraries on the same machine."""
