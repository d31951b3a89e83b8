# SPDX-License-Identifier: Apache-2.0
"""The quotients that a command holds, because the engine multiplies and does not divide."""

from __future__ import annotations

from dataclasses import replace

from ..interface import Command


def with_quotients(command: Command) -> Command:
    """`command` with its loops counted: tile groups, weight blocks of a part, passes and, of an
    image, the banks that the channels of a part take. The engine refuses any other counts."""
    c = command
    return replace(
        c,
        tile_groups=-(-c.tiles // c.tiles_per_block),
        blocks=-(-c.part_rows // c.rows_per_block),
        passes=-(-c.groups // c.groups_per_pass),
        channel_blocks=-(-c.part_channels // c.bank_size),
    )
