"""What the pocket world consists of: colours, shapes, characters, words, fonts, places."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "orange": (247, 140, 16),
    "yellow": (246, 228, 44),
    "green": (34, 160, 56),
    "cyan": (50, 212, 222),
    "blue": (36, 66, 222),
    "purple": (132, 44, 178),
    "pink": (250, 138, 196),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
PLURALS = {s: s + ("es" if s.endswith("ss") else "s") for s in SHAPES}
LETTERS = "ABCDEFHKLMNPRSTUXY"
DIGITS = "0123456789"
CHARS = LETTERS + DIGITS
WORDS = (
    "BUS", "CAR", "BAR", "TEA", "MAP", "SUN", "LAB", "PUB", "TAX", "ART", "FUN", "NET",
    "CAFE", "SALE", "PARK", "BANK", "MENU", "HELP", "FAST", "LAMP", "PLAY", "EAST", "FREE", "CHEF",
)  # fmt: skip
# Fonts that matplotlib ships. The Computer Modern files hold ASCII letters and digits as usual.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmb10.ttf",
)
DARK_TEXT = ("orange", "yellow", "cyan", "pink")  # boards light enough for dark characters
# Places as fractions of the side: (x0, y0, x1, y1).
PLACES: dict[str, tuple[float, float, float, float]] = {
    "top left corner": (0.0, 0.0, 0.25, 0.25),
    "top right corner": (0.75, 0.0, 1.0, 0.25),
    "bottom left corner": (0.0, 0.75, 0.25, 1.0),
    "bottom right corner": (0.75, 0.75, 1.0, 1.0),
}
