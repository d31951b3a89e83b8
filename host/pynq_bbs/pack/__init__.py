# SPDX-License-Identifier: Apache-2.0
"""Station 3: from integer layers to a program: image, commands, schedule, cycle model."""
