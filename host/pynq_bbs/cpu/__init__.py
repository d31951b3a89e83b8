# SPDX-License-Identifier: Apache-2.0
"""The cpu device: an implementation of its own, against which every board is checked."""
