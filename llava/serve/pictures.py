"""Pictures that users bring: any file, any size, told in one line where it cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

__all__ = ["LONGEST", "MOST_PIXELS", "open_picture"]

MOST_PIXELS = 150_000_000
"""Pictures beyond are not decoded: 12,247 x 12,247, 450 MB in memory."""
LONGEST = 2048
"""The longer side of what is kept; models look at 336 to 1008 pixels of it."""


def open_picture(
    path: str | Path | BinaryIO, longest: int = LONGEST, name: str | None = None
) -> tuple[Image.Image, str]:
    """The picture of a file in RGB, upright, at most `longest` pixels long, and a line about it.

    Args:
        name: what to call the file; by default the last part of its path.

    Raises `ValueError` on anything else than a picture, in one line that says what to do.
    """
    if isinstance(path, (str, Path)):
        path = Path(path).expanduser()
        name = name or path.name
    name = name or "the picture"
    try:
        with warnings.catch_warnings():
            # From 89 megapixels Pillow warns; the limit here is told before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ValueError(too_large(name, f"{width} x {height} pixels"))
                picture = shrink(image, longest)
    except FileNotFoundError:
        raise ValueError(f"no picture at {path}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(too_large(name, str(error))) from None
    except ValueError:
        raise
    except Exception as error:
        # A broken file makes Pillow raise nearly anything.
        said = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({one_line(error)})"
        raise ValueError(
            f"{name} cannot be read as a picture{said}; give a PNG, JPEG, WebP, GIF, BMP or TIFF"
        ) from None
    note = f"{name}: {width} x {height} pixels"
    shrunk = max(width, height) > longest
    return picture, note + f", brought to {picture.width} x {picture.height}" * shrunk


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """RGB, upright, and no longer than `longest`; decodes large files at a part of their size."""
    image.draft("RGB", (longest, longest))  # JPEG alone; others are decoded whole
    if image.mode in ("1", "I;16"):
        image = image.convert(
            "L"
        )  # one byte a pixel; RGB of a scanned page would be three times it
    if image.mode not in ("L", "RGB", "RGBA", "LA", "CMYK"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if max(image.size) > longest:
        # Never to nothing: a line one pixel wide stays one.
        image.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=2.0)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def too_large(name: str, what: str) -> str:
    """The line about a picture beyond the limit."""
    limit = MOST_PIXELS // 1_000_000
    return (
        f"{name} is too large ({what}); at most {limit} megapixels are read, and models see one of "
        "them at most: make it smaller"
    )


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
