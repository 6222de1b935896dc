"""What a checkpoint keeps of the driver."""

from typing import Any

State = dict[str, Any]
"""A part of it, as JSON; whoever makes it reads it again, by names of its own."""
