"""What a schema registry's serializers put before a payload, and what is left when it is taken off.

Confluent's serializers write a byte 0 and the schema's id in four bytes, big-endian, or a byte 1 and the
schema's GUID in sixteen. Avro's binary or the text of JSON Schema follows at once, Protobuf's binary after
varints that index its message. Newer serializers can put all of this into a header instead: the value is then
the bare payload.
"""

from typing import NamedTuple
from uuid import UUID

from pipeline.events.batch import Record

ID_FRAME, GUID_FRAME = 5, 17  # bytes
VALUE_HEADER = "__value_schema_id"
ADVICE = (
    "Avro and Protobuf are not read; expected JSON or JSON Schema. Choose another serializer in the producer "
    "or convert the records into another topic"
)


class Framed(NamedTuple):
    """A schema's name, for messages, and the payload behind it."""

    schema: str
    payload: bytes


def unframed(data: bytes) -> Framed | None:
    """Take the frame off; None when there is none. No JSON text begins like one.

    >>> unframed(bytes([0, 0, 0, 1, 2]) + b'{"user_id":"ann"}')
    Framed(schema='schema id 258', payload=b'{"user_id":"ann"}')
    >>> unframed(b'{"user_id":"ann"}') is None
    True
    """
    if data[:1] == b"\x00" and len(data) >= ID_FRAME:
        return Framed(f"schema id {int.from_bytes(data[1:ID_FRAME], 'big')}", data[ID_FRAME:])
    if data[:1] == b"\x01" and len(data) >= GUID_FRAME:
        return Framed(f"schema {UUID(bytes=data[1:GUID_FRAME])}", data[GUID_FRAME:])
    return None


def is_object(payload: bytes) -> bool:
    """Say whether a payload can be a JSON object; Avro and Protobuf seldom begin like one."""
    return payload.lstrip(b" \t\r\n").startswith(b"{")


def payload_of(value: bytes) -> bytes:
    """Return the JSON object behind a frame; a value without one as it is."""
    framed = unframed(value) if value[:1] in (b"\x00", b"\x01") else None
    return framed.payload if framed and is_object(framed.payload) else value


def schema_of(record: Record) -> str | None:
    """Return the name of the schema that a record was written with, by its frame or its headers."""
    framed = unframed(record.value or b"")
    if framed:
        return framed.schema
    for name, content in getattr(record, "headers", None) or ():
        if name == VALUE_HEADER:
            named = unframed(content or b"")
            return named.schema if named else "a schema named in its headers"
    return None
