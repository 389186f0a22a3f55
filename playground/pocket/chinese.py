"""The questions of MMBench-CN: templates and words."""

from __future__ import annotations

from .facts import Fact
from .vocabulary import PLURALS

COLORS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "cyan": "青色",
    "blue": "蓝色", "purple": "紫色", "pink": "粉色",
}  # fmt: skip
SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形", "cross": "十字形",
    "diamond": "菱形", "ring": "圆环", "heart": "心形", "sign": "牌子",
}  # fmt: skip
WORDS = {
    **COLORS, **SHAPES, **{plural: SHAPES[s] for s, plural in PLURALS.items()},
    "left": "左边", "right": "右边", "above": "上面", "below": "下面",
    "to the left of": "左边", "to the right of": "右边",
    "top left": "左上", "top right": "右上", "bottom left": "左下", "bottom right": "右下",
    "top left corner": "左上角", "top right corner": "右上角",
    "bottom left corner": "左下角", "bottom right corner": "右下角",
    "yes": "是", "no": "否", "warm": "暖色", "cold": "冷色",
}  # fmt: skip
OPEN = {
    "color": "{a}是什么颜色？",
    "shape": "{color}的物体是什么形状？",
    "letter": "{color}的牌子上是什么字母？",
    "number": "{color}的牌子上是什么数字？",
    "word": "{color}的牌子上是什么单词？",
    "place_color": "{place}的物体是什么颜色？",
    "place_shape": "{place}的物体是什么形状？",
    "count": "有几个{a}？",
    "where": "{a}在{b}的哪一边？",
    "quarter": "{a}在图片的哪个部分？",
    "same": "{a}和{b}的颜色相同吗？",
    "more": "{a}和{b}哪个更多？",
    "most": "哪种形状最多？",
    "warm": "{a}的颜色是暖色还是冷色？",
    "near_color": "{b}{where}最近的物体是什么颜色？",
    "near_shape": "{b}{where}最近的物体是什么形状？",
    "chain_color": "{b}{where2}最近的物体的{where}最近的物体是什么颜色？",
    "chain_shape": "{b}{where2}最近的物体的{where}最近的物体是什么形状？",
}


def chinese(phrase: str) -> str:
    """A word or name of the pocket world; digits, letters and words on signs stay."""
    if phrase in WORDS:
        return WORDS[phrase]
    color, _, shape = phrase.partition(" ")
    return f"{COLORS[color]}的{SHAPES[shape]}" if shape in SHAPES else phrase


def open_text(fact: Fact) -> str:
    text = OPEN[fact.type]
    for key, word in fact.words.items():
        text = text.replace("{" + key + "}", chinese(word))
    return text
