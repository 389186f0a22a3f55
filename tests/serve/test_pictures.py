"""Whatever file a user brings: a picture, or one line about why it is none."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from llava.serve.pictures import LONGEST, MOST_PIXELS, open_picture


def huge_png(file: Path, side: int) -> Path:
    """A black PNG of one bit a pixel, some KB large; the pixels are never made."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    packer = zlib.compressobj(1)
    row = b"\0" + bytes((side + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return file


def test_a_picture_of_ten_thousand_squared_is_made_smaller(tmp_path: Path) -> None:
    file = huge_png(tmp_path / "huge.png", 10_000)
    assert file.stat().st_size < 200_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture, note = open_picture(file)
    assert picture.size == (LONGEST, LONGEST) and picture.mode == "RGB"
    assert note == "huge.png: 10000 x 10000 pixels, brought to 2048 x 2048"


@pytest.mark.parametrize("side", [12_300, 20_000])
def test_beyond_the_limit_it_is_told_before_anything_is_decoded(tmp_path: Path, side: int) -> None:
    """20,000 squared is what Pillow itself calls a bomb; 12,300 squared is not."""
    file = huge_png(tmp_path / "bomb.png", side)
    assert side**2 > MOST_PIXELS
    with pytest.raises(
        ValueError, match="bomb.png is too large .*at most 150 megapixels"
    ) as caught:
        open_picture(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"hello, I am a text\n", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a", b"II*\0\xff"],
)
def test_what_is_no_picture_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.png"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match="notes.png cannot be read as a picture.*; give a PNG"
    ) as e:
        open_picture(file)
    assert "\n" not in str(e.value) and str(tmp_path) not in str(e.value)


def test_a_file_cut_off_in_the_middle(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((300, 300), 90).convert("RGB").save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(ValueError, match="cut.jpg cannot be read as a picture"):
        open_picture(cut)
    with pytest.raises(ValueError, match="no picture at"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="cannot be read"):
        open_picture(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("picture.tiff" if mode in ("CMYK", "F") else "picture.png")
    Image.new(mode, (40, 20)).save(file)
    picture, note = open_picture(file)
    assert picture.mode == "RGB" and picture.size == (40, 20)
    assert note == f"{file.name}: 40 x 20 pixels"


def test_transparent_is_white_and_upright_is_up(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(clear)
    assert open_picture(clear)[0].getpixel((1, 1)) == (255, 255, 255)
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (0, 0, 40, 40))
    image.save(turned, exif=exif)
    picture, _ = open_picture(turned)
    assert picture.size == (40, 80)
    red, _, blue = picture.getpixel((20, 10))  # type: ignore[misc]
    assert blue > 200 and red < 60, "what was left is up"


def test_a_thin_picture_keeps_its_width(tmp_path: Path) -> None:
    file = tmp_path / "line.png"
    Image.new("RGB", (9000, 2)).save(file)
    assert open_picture(file)[0].size == (LONGEST, 1)
