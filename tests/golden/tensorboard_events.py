"""Writes `events.tfevents` with TensorBoard's writer, or reads an event file with its reader.

usage: python tensorboard_events.py [FILE]

With FILE, prints the events in it, one per line.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

GOLDEN = Path(__file__).parents[2] / "crates/take-away/tests/events.tfevents"


def summary(step, tag, **content):
    value = Summary.Value(tag=tag, **content)
    return Event(wall_time=2.25, step=step, summary=Summary(value=[value]))


def write():
    image = Summary.Image(height=2, width=3, colorspace=1, encoded_image_string=b"not a PNG")
    events = [
        Event(wall_time=1.5, file_version="brain.Event:2"),
        summary(3, "loss/train", simple_value=0.125),
        summary(0, "zero", simple_value=0.0),
        summary(2**40, "digit", image=image),
    ]
    with open(GOLDEN, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


def describe(event):
    if event.HasField("file_version"):
        return f"version {event.file_version}"
    (value,) = event.summary.value
    if value.HasField("simple_value"):
        return f"{event.step} {value.tag} {value.simple_value}"
    pixels = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert pixels.size == (value.image.width, value.image.height)
    return f"{event.step} {value.tag} {pixels.mode} {pixels.size} {pixels.tobytes().hex()}"


if len(sys.argv) == 1:
    write()
else:
    for event in LegacyEventFileLoader(sys.argv[1]).Load():
        print(describe(event))
