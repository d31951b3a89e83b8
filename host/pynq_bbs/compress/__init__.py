# SPDX-License-Identifier: Apache-2.0
"""Station 2: fewer weights, smaller numbers."""
