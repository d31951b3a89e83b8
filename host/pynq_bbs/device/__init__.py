# SPDX-License-Identifier: Apache-2.0
"""Station 4: the board, the emulated board, and the driver that runs both."""
