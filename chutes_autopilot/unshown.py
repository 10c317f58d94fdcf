"""Values that hold what nobody may read in a log."""

import msgspec


class Unshown(msgspec.Struct):
    """Shows no more than its name when it is printed, by itself or as a part of something else."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"
