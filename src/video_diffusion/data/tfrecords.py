"""TensorFlow's record files without TensorFlow: the places of the records, and the bytes that an Example holds.

The file format: for each record its length (8 bytes), a checksum of the length, the record, and a checksum of it
(https://www.tensorflow.org/tutorials/load_data/tfrecord); a record is a protocol buffer `tf.train.Example`.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

HEAD, TAIL = 12, 4  # bytes before and after a record


def masked_crc32c(data: bytes) -> int:
    """The checksum of record files: CRC-32C, turned and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def find_records(file: Path) -> list[tuple[int, int]]:
    """Where each record begins, and its length in bytes. Only the lengths are read and checked.

    Raises:
        ValueError: where the file is no record file, or is truncated.
        OSError: where there is no such file.
    """
    found: list[tuple[int, int]] = []
    size, at = file.stat().st_size, 0
    with file.open("rb") as stream:
        while at < size:
            stream.seek(at)
            head = stream.read(HEAD)
            if len(head) < HEAD or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                raise ValueError(f"{file} is no record file, or broken: record {len(found)} has no valid length.")
            (length,) = struct.unpack("<Q", head[:8])
            if at + HEAD + length + TAIL > size:
                left = size - at - HEAD
                raise ValueError(f"{file} is truncated: {left} bytes for record {len(found)} of {length + TAIL}.")
            found.append((at + HEAD, length))
            at += HEAD + length + TAIL
    return found


def read_record(file: Path, place: tuple[int, int]) -> bytes:
    """The record at a place of `find_records`. Raises ValueError where the file has less by now."""
    start, length = place
    with file.open("rb") as stream:
        stream.seek(start)
        record = stream.read(length)
    if len(record) < length:
        raise ValueError(f"{file} is truncated: {len(record)} bytes of a record of {length}.")
    return record


def bytes_of(record: bytes) -> dict[str, memoryview]:
    """The features of an Example that hold one value of bytes, by name; nothing is copied.

    Raises:
        ValueError: where it is no Example.
    """
    found: dict[str, memoryview] = {}
    for features in _parts(memoryview(record), 1):
        for entry in _parts(features, 1):
            names, values = list(_parts(entry, 1)), list(_parts(entry, 2))
            lists = [part for value in values for part in _parts(value, 1)]
            items = [item for part in lists for item in _parts(part, 1)]
            if len(names) == 1 and len(items) == 1:
                found[str(names[0], "utf-8", "replace")] = items[0]
    return found


def _parts(message: memoryview, number: int) -> Iterator[memoryview]:
    """The parts of a message that stand under a number and have a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            length, at = 0, _varint(message, at)[1]
        elif kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a record holds no Example: unknown wire type {kind}")
        if at + length > len(message):
            raise ValueError(f"a record holds no Example: {length} bytes where {len(message) - at} are left")
        if kind == 2 and tag >> 3 == number:
            yield message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a record holds no Example: a number does not end")
