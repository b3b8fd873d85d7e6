"""Draws `five.png` and `four.png`: digits that look as if written on paper and photographed.

The light is uneven, the paper grainy and the pen blurred. Both are drawn by this program, so that
anyone may use them. Needs numpy; `python3 on_paper.py` always writes the same files.
"""

import struct
import zlib

import numpy as np

HEIGHT, WIDTH = 320, 240

# Strokes as Bézier curves of four points each, in pixels from the left and the top.
FIVE = [
    [(108, 92), (104, 112), (99, 130), (95, 152)],
    [(95, 152), (128, 128), (170, 152), (158, 192)],
    [(158, 192), (148, 228), (104, 236), (82, 214)],
    [(106, 94), (126, 92), (146, 91), (170, 82)],
]
# Nearly closed at the top, so that it could be a nine.
FOUR = [
    [(116, 84), (98, 70), (76, 112), (90, 152)],
    [(90, 152), (98, 170), (132, 168), (152, 146)],
    [(160, 88), (157, 132), (152, 180), (138, 236)],
]


def curve(points, steps=60):
    t = np.linspace(0, 1, steps)[:, None]
    a, b, c, d = np.array(points, float)
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


def ink(strokes, y, x):
    """How much ink covers each pixel, from 0 to 1.

    The pen is 9 pixels wide and pressed harder at the start of a stroke.
    """
    cover = np.zeros(y.shape)
    for points in map(curve, strokes):
        for step, (px, py) in enumerate(points):
            radius = 4.9 - 1.1 * step / len(points)
            distance = np.hypot(x - px, y - py)
            cover = np.maximum(cover, np.clip((radius - distance) / 1.6 + 0.5, 0, 1))
    return cover


def png(pixels):
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of gray
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def draw(strokes, file):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    lamp = 0.88 - 0.42 * np.hypot(y / HEIGHT - 0.15, x / WIDTH - 0.85) ** 1.4
    grain = np.random.default_rng(5).normal(0, 0.018, y.shape)
    gray = lamp * (1 - 0.72 * ink(strokes, y, x)) + grain
    # Few shades make a small file.
    shades = np.clip(np.round(gray * 32) * 8, 0, 255).astype(np.uint8)
    with open(file, "wb") as opened:
        opened.write(png(shades))


if __name__ == "__main__":
    draw(FIVE, "five.png")
    draw(FOUR, "four.png")
