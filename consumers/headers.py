"""Headers that pika cannot decode, and that would otherwise stop the consumer for good.

pika 1.4.4 raises on a timestamp beyond the year 9999 (one in milliseconds, or a time before 1970) and on deep nesting,
and takes that for a lost connection: the message is never acked, comes back, and ends the next connection too.
"""

import struct
from typing import Any

import pika.data

_decode_value = pika.data.decode_value


def tolerate_odd_headers() -> None:
    """From now on a header that cannot be decoded reads as None. May be repeated."""
    pika.data.decode_value = _decoded_or_none


def _decoded_or_none(encoded: bytes, offset: int) -> tuple[Any, int]:
    try:
        return _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError, RecursionError):
        # Timestamps and doubles have eight bytes, floats four; lists and tables say how long they are.
        kind = encoded[offset : offset + 1]
        size = 8 if kind in (b"T", b"d") else 4
        if kind in (b"A", b"F"):
            size += struct.unpack_from(">I", encoded, offset + 1)[0]
        return None, offset + 1 + size
